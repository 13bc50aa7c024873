"""The mathematics and the data of MiniLLM: pure torch, numpy and transformers; no Ray, vLLM or DeepSpeed."""
