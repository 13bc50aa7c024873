"""Tests of launch/run/: the stages of a run, mostly with the real command."""
