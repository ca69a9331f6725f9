"""The handshake, walked exhaustively."""
