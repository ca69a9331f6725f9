"""The two stories of a live update: `source` (the old process) and `target` (the new one)."""
