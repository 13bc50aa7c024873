"""Runs the stages of a config: one module for their order, and others for the loop, disk state and data of a stage."""
