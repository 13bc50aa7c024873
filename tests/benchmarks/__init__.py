"""Comparisons with other frameworks, a simulation of large scale, and the cost of stale rollouts."""
