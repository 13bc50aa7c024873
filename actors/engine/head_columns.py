"""Log-normaliser and log-prob of given tokens by a network's own head, from hidden states: the teacher's checksum."""

import torch
from torch import nn

HEAD_CHUNK_ROWS = {"cpu": 128, "cuda": 512}  # rows whose logits exist at once; on a CPU few, so that its allocator reuses their memory
CACHED_ROWS = 16  # rows whose float32 logits stay in a CPU's cache between two passes over them


def head_columns(
    network: nn.Module, hidden: torch.Tensor, next_tokens: torch.Tensor, temperatures: torch.Tensor, shared_vocabulary: int
) -> torch.Tensor:
    """Log-normaliser and next token's log-prob over the shared vocabulary, float32 [rows, 2]. A token above it has log-prob -inf.

    network: a model of vLLM, whose `compute_logits` includes its norm, bias, scale and soft-cap. hidden: [rows, d]. next_tokens: int64
    [rows]. temperatures: float32 [rows], which divide the logits. Under tensor parallelism every rank must call it, and only rank 0 gets
    the values.
    """
    size = HEAD_CHUNK_ROWS[hidden.device.type]
    chunks = zip(*(column.split(size) for column in (hidden, next_tokens, temperatures)), strict=True)
    return torch.cat([_chunk_columns(network, *chunk, shared_vocabulary) for chunk in chunks])


def _chunk_columns(
    network: nn.Module, hidden: torch.Tensor, next_tokens: torch.Tensor, temperatures: torch.Tensor, shared_vocabulary: int
) -> torch.Tensor:
    logits = network.compute_logits(hidden)
    if logits is None:  # another rank than 0
        return hidden.new_zeros(len(hidden), 2, dtype=torch.float32)
    logits = logits[..., :shared_vocabulary]
    size = CACHED_ROWS if logits.is_cpu else len(logits)
    blocks = zip(logits.split(size), temperatures.split(size), strict=True)
    normalizer = torch.cat([(block.float() / divisors[:, None]).logsumexp(-1) for block, divisors in blocks])
    chosen = logits.gather(-1, next_tokens.clamp(max=shared_vocabulary - 1).unsqueeze(-1)).squeeze(-1).float() / temperatures
    logprob = (chosen - normalizer).masked_fill(next_tokens >= shared_vocabulary, float("-inf"))
    return torch.stack([normalizer, logprob], dim=-1)
