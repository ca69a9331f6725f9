"""Unit tests of the cpr package."""
