"""Tests of vmm.boot."""
