"""The `minirl` command and the code of its verbs: configs, stages of a run, evaluation, experiments and the bench."""
