"""Tests of vmm.devices."""
