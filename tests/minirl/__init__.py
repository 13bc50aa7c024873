"""Tests of `minirl`."""
