"""Fakes and rigs that several tests use."""
