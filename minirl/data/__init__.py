"""Data: instruction records and plain text from files, hub or packages, turned into examples and blocks of tokens."""
