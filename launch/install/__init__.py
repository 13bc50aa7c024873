"""Checks around `make install`: the machine before it, the virtual environment after it."""
