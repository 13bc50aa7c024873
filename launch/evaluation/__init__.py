"""The stage and the command `evaluate`: starts the groups, measures each model on each evaluation set, writes the report."""
