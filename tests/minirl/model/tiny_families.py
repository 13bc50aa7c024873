"""Families and tokens for the tests of models, and what transformers computes with them."""

import torch
from transformers import AutoModelForCausalLM

VOCABULARY = 64
TOKENS = torch.tensor([[5, 9, 30, 11, 2, 63, 7]])
FAMILIES = [f"{family} {tying}" for family in ("llama", "gpt2", "qwen2") for tying in ("tied", "untied")]


@torch.no_grad()
def logits_of(directory: str) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(directory).eval()(TOKENS).logits
