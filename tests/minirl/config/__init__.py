"""Tests of the config sections and their reader."""
