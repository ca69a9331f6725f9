"""Tests of guestram."""
