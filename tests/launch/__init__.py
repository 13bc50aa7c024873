"""Tests of launch/: the commands, the config and what a run leaves on disk."""
