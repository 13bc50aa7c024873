"""Tests of the data and the teacher from installed packages."""
