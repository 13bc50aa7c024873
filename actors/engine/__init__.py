"""vLLM: how an engine is started, and the models, extensions and logits processors that run inside it."""
