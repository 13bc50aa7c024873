"""A vLLM logits processor that lets no n-gram occur twice: transformers' `no_repeat_ngram_size`.

Prompt and response count together. The reference samples like this in its evaluation, with n = 6; the paper does not mention it. Blocked
sampling no longer follows the model's distribution.
"""

from collections import defaultdict

import torch
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

NGRAM_KEY = "no_repeat_ngram"  # the key in SamplingParams.extra_args


class SeenNgrams:
    """The n-grams in the tokens of one request. response: vLLM's own list, which grows while the request runs."""

    def __init__(self, n: int, prompt: list[int], response: list[int]):
        self._n, self._response, self._read_count = n, response, 0
        self._tokens: list[int] = []
        self._next_tokens: dict[tuple[int, ...], set[int]] = defaultdict(set)  # n - 1 tokens -> all tokens that have followed them
        self._extend(prompt)

    def blocked_tokens(self) -> list[int]:
        """The tokens that would repeat an n-gram if they came next."""
        self._extend(self._response[self._read_count :])
        self._read_count = len(self._response)
        return sorted(self._next_tokens.get(self._last_tokens(), ()))

    def _extend(self, tokens: list[int]) -> None:
        for token in tokens:
            if len(self._tokens) >= self._n - 1:
                self._next_tokens[self._last_tokens()].add(token)
            self._tokens.append(token)

    def _last_tokens(self) -> tuple[int, ...]:
        """The last n - 1 tokens."""
        return tuple(self._tokens[len(self._tokens) - self._n + 1 :])


class NgramBlocking(LogitsProcessor):
    """Blocks repeated n-grams for requests with `extra_args={"no_repeat_ngram": n}`. vLLM builds it in its own processes."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool):
        self._requests: dict[int, SeenNgrams] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self._requests, batch_update, _seen_ngrams)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        blocked = [(row, token) for row, seen in self._requests.items() for token in seen.blocked_tokens()]
        if blocked:
            rows, tokens = torch.tensor(blocked, device=logits.device).T
            logits[rows, tokens] = float("-inf")
        return logits


def _seen_ngrams(parameters: SamplingParams, prompt: list[int] | None, response: list[int]) -> SeenNgrams | None:
    n = (parameters.extra_args or {}).get(NGRAM_KEY)
    return SeenNgrams(n, prompt or [], response) if n else None
