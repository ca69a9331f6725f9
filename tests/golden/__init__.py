"""What each released version puts on the wire, kept as it was."""
