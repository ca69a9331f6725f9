"""VMMs of versions that never existed, and what happens between them and the present one."""
