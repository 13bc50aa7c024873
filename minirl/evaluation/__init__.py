"""Figures of models (Rouge-L, exact divergences, diversity), reports and plots, and the LLM judge's prompts."""
