"""What a person runs: the `minirl` command and what stands behind its verbs."""
