"""Benchmark of a run: efficiency ratios and advice from measurements, and their report."""
