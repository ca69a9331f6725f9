"""Unit tests of the virtio devices."""
