"""Typed, strict configuration of the algorithm and the data, and the reader that turns YAML into it."""
