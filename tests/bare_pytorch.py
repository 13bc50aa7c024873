"""What bare PyTorch and transformers take for a role's work, as the measure for the role's throughput."""

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from minirl.bench.timing import median_seconds
from tests.tiny import END_TOKEN


def load(directory: str, dtype: torch.dtype, device: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).to(device).eval()


@torch.no_grad()
def sample(model: PreTrainedModel, prompts: np.ndarray, length: int) -> torch.Tensor:
    """`length` sampled tokens behind each prompt, whatever they are. prompts: [requests, tokens]; returns [requests, tokens + length]."""
    tokens = torch.from_numpy(prompts).to(model.device)
    return model.generate(
        tokens, attention_mask=torch.ones_like(tokens), do_sample=True, top_k=0, max_new_tokens=length, min_new_tokens=length,
        pad_token_id=END_TOKEN,
    )  # fmt: skip


@torch.no_grad()
def states(model: PreTrainedModel, sequences: np.ndarray, sequences_per_pass: int) -> torch.Tensor:
    """The final hidden states [sequences, tokens, width], computed in passes of a few sequences."""
    batches = torch.from_numpy(sequences).to(model.device).split(sequences_per_pass)
    return torch.cat([model.base_model(input_ids=batch, use_cache=False).last_hidden_state for batch in batches])


def seconds(model: PreTrainedModel, call, *arguments) -> float:
    """Seconds of `sample` or `states`."""
    return median_seconds(lambda: call(model, *arguments), model.device)
