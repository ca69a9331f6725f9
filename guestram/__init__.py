"""Guest physical memory in memfds that outlive the process, and the lease to run a guest in it."""
