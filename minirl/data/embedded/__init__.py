"""A teacher, instruction records and plain text from installed packages, for use without a network."""
