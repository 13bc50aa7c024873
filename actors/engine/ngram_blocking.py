"""No n-gram twice in prompt and response together: what transformers calls `no_repeat_ngram_size`, as a logits processor of vLLM.

The reference's evaluation samples so, with n = 6, which the paper does not say. What is sampled then is not the model's distribution.
"""

from collections import defaultdict

import torch
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

NGRAM = "no_repeat_ngram"  # the key in SamplingParams.extra_args


class SeenNgrams:
    """The n-grams of one request's tokens. response: vLLM's own running list, longer at each look."""

    def __init__(self, n: int, prompt: list[int], response: list[int]):
        self._n, self._response, self._read = n, response, 0
        self._tokens: list[int] = []
        self._next: dict[tuple[int, ...], set[int]] = defaultdict(set)
        self._extend(prompt)

    def completing(self) -> list[int]:
        """The tokens that would end an n-gram which is there already."""
        self._extend(self._response[self._read :])
        self._read = len(self._response)
        return sorted(self._next.get(self._last(), ()))

    def _extend(self, tokens: list[int]) -> None:
        for token in tokens:
            if len(self._tokens) >= self._n - 1:
                self._next[self._last()].add(token)
            self._tokens.append(token)

    def _last(self) -> tuple[int, ...]:
        return tuple(self._tokens[len(self._tokens) - self._n + 1 :])


class NgramBlocking(LogitsProcessor):
    """Built by vLLM in its own processes; a request asks for it with `extra_args={"no_repeat_ngram": n}`."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool):
        self._requests: dict[int, SeenNgrams] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self._requests, batch_update, _seen)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        blocked = [(row, token) for row, seen in self._requests.items() for token in seen.completing()]
        if blocked:
            rows, tokens = torch.tensor(blocked, device=logits.device).T
            logits[rows, tokens] = float("-inf")
        return logits


def _seen(parameters: SamplingParams, prompt: list[int] | None, response: list[int]) -> SeenNgrams | None:
    n = (parameters.extra_args or {}).get(NGRAM)
    return SeenNgrams(n, prompt or [], response) if n else None
