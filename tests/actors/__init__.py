"""Tests of actors/, with fixtures for engines and learner groups."""
