"""What an update is given and reports: addresses, parameters, status, checks, main channel."""
