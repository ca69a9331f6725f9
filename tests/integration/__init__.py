"""Real processes, real guests, real peers."""
