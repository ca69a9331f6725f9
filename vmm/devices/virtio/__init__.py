"""Virtio devices (OASIS virtio 1.2): split virtqueues, the MMIO transport, and net, rng and blk."""
