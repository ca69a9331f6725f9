"""Tests of the VMM process itself."""
