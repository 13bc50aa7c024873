"""The processes of a run: where they stand, how they talk, when they end. No algorithm."""
