"""The live-update protocol: handshake, messages, vmstate, named fds and the channel that carries them."""
