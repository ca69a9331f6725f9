"""Fuzzing of everything that reads what a peer, a client or a file gives: see __main__.py."""
