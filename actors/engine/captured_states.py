"""CapturedStates: the teacher's hidden states of the responses that a mixture engine is sampling, one before each token."""

import torch

from minirl.errors import RunError


class CapturedStates:
    """Room for the states of `slots` requests of at most `tokens` response tokens each: [slots x tokens, width], row by row as they come.

    The tensor gets the device and the dtype that torch creates tensors with. vLLM sets both while it builds a model, and counts the memory
    before it divides the rest among the KV cache.
    """

    def __init__(self, slots: int, tokens: int, width: int):
        self._states, self._tokens = torch.empty(slots * tokens, width), tokens
        self.clear()

    def clear(self) -> None:
        """Forgets all requests."""
        self._free = list(range(len(self._states) // self._tokens))
        self._slots: dict[str, int] = {}
        self._counts: dict[str, int] = {}  # states of each request so far

    def add(self, requests: list[str], places: list[int], states: torch.Tensor) -> None:
        """Keeps the states of one step. requests, places: those of the rows of `states` [rows, width], see `sampled_places`.

        Of each request it takes only the place after the last one that it has. That leaves out incomplete prompts, places that come again
        after a preemption (the state that sampled the token stays), and the step that was under way when a request was taken.
        """
        kept, targets = [], []
        for row, (request, place) in enumerate(zip(requests, places, strict=True)):
            count = self._counts.get(request, 0)
            if place != count or count == self._tokens:
                continue
            if count == 0:
                self._slots[request] = self._next_slot()
            self._counts[request] = count + 1
            kept.append(row)
            targets.append(self._slots[request] * self._tokens + count)
        if kept:
            rows = states if len(kept) == len(states) else states.index_select(0, _indices(kept, states.device))
            self._states.index_copy_(0, _indices(targets, states.device), rows)

    def take(self, request: str, tokens: int) -> torch.Tensor:
        """The states [tokens, width] of a request that has ended, and frees its slot. The next `add` may overwrite them."""
        count = self._counts.pop(request, 0)
        if count < tokens:
            raise RunError(
                f"a response of {tokens} tokens has the teacher's states of {count} only; report this, and set teacher.scores: group"
            )
        slot = self._slots.pop(request)
        self._free.append(slot)
        return self._states[slot * self._tokens : slot * self._tokens + tokens]

    def _next_slot(self) -> int:
        if not self._free:
            raise RunError(f"more than {len(self._slots)} responses are sampled at a time; report this, and set teacher.scores: group")
        return self._free.pop()


def _indices(values: list[int], device: torch.device) -> torch.Tensor:
    """int64 on the device; the host does not wait for the copy."""
    return torch.tensor(values, pin_memory=device.type == "cuda").to(device, non_blocking=True)
