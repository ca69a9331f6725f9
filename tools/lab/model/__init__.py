"""The model of an update: two processes, the kernel between them, and a third that would run."""
