"""Jobs on a Ray cluster: submit a run, follow it, stop it."""
