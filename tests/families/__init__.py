"""Model families: tiny random models of each, and the steps of a run that each one must pass."""
