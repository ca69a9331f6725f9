"""What an update is asked with and reports: addresses, parameters, status, checks, the main channel."""
