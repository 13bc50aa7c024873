"""Typed, strict configuration: what the algorithm and the data need. An unknown key is an error that names the nearest key."""
