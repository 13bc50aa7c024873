"""Evaluation of models with running Ray groups: the stage and the command `evaluate`."""
