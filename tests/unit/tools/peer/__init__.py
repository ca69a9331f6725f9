"""Tests of the comparison with another VMM."""
