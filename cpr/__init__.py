"""The live-update protocol: handshake, messages, vmstate, named fds and their channel."""
