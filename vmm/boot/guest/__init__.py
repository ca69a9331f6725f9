"""The built-in guest: source, prebuilt ELF, and the reader of its report page."""
