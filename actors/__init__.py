"""The Ray processes of a run: groups, workers, vLLM engines and weight transfer. No algorithm."""
