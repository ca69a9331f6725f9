"""One VMM process: a guest, its monitors, and the updates that begin or end it."""
