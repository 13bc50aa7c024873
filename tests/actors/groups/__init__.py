"""Tests of the Ray groups, from one call to whole iterations."""
