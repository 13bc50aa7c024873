"""Benchmark of a run: rates of each device, ratios to limits and the bottleneck, from measurements, and their report."""
