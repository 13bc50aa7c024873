"""Models: loading, LoRA adapters, micro-batches, chunked output heads, the student module, teacher ensembles."""
