"""Measures of models (Rouge-L, exact divergences, diversity), their reports and plots, and the prompts of the LLM judge."""
