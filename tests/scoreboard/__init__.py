"""Weaknesses of other VMMs, each with a test of what happens here. The table is README.md."""
