"""Contracts that every accelerator and every device keeps."""
