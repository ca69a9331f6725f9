"""QMP and the human monitor: session, schema, commands, server."""
