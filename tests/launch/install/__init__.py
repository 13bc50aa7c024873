"""Tests of launch/install/: the checks around `make install`."""
