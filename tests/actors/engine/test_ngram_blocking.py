"""N-gram blocking: by hand, and step by step against transformers' `NoRepeatNGramLogitsProcessor`."""

import numpy as np
import pytest
import torch
from transformers import NoRepeatNGramLogitsProcessor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from actors.engine.ngram_blocking import NGRAM_KEY, NgramBlocking, SeenNgrams


def test_blocked_tokens_by_hand():
    """After 1 2 3 1, the token 2 would repeat (1, 2). The response 4 1 adds (1, 4), so after it 2 and 4 are blocked."""
    response: list[int] = []
    seen = SeenNgrams(2, [1, 2, 3, 1], response)
    assert seen.blocked_tokens() == [2]
    response += [4, 1]
    assert seen.blocked_tokens() == [2, 4]
    assert SeenNgrams(1, [5, 3], []).blocked_tokens() == [3, 5]
    assert SeenNgrams(6, [1, 2], [3]).blocked_tokens() == []


def new_request(index: int, prompt: list[int], response: list[int], n: int | None):
    return index, SamplingParams(extra_args={NGRAM_KEY: n} if n else None), prompt, response


@pytest.mark.parametrize("n", [1, 2, 3])
def test_each_step_equals_that_of_transformers(n):
    """With few tokens, much repeats. One row has no blocking. Two rows swap midway, as they do in vLLM's batch."""
    draw = np.random.default_rng(n)
    prompts = [draw.integers(0, 4, length).tolist() for length in (1, 6, 9)]
    responses: list[list[int]] = [[], [], []]
    blocking, reference = NgramBlocking(None, torch.device("cpu"), False), NoRepeatNGramLogitsProcessor(n)
    sizes = [n, None, n]
    blocking.update_state(BatchUpdate(3, [], [new_request(i, prompts[i], responses[i], sizes[i]) for i in range(3)], []))
    blocked_count = 0
    for step in range(8):
        logits = torch.randn(3, 5)
        processed = blocking.apply(logits.clone())
        for row in range(3):
            expected = logits[row]
            if sizes[row]:
                expected = reference(torch.tensor([prompts[row] + responses[row]]), logits[row : row + 1].clone())[0]
            assert torch.equal(processed[row], expected)
            blocked_count += int(processed[row].isinf().sum())
            responses[row].append(int(draw.integers(0, 4)))
        if step == 3:
            blocking.update_state(BatchUpdate(3, [], [], [(0, 1, MoveDirectionality.SWAP)]))
            for rows in (prompts, responses, sizes):
                rows[0], rows[1] = rows[1], rows[0]
    assert blocked_count


def test_a_finished_request_blocks_nothing():
    blocking = NgramBlocking(None, torch.device("cpu"), False)
    blocking.update_state(BatchUpdate(1, [], [new_request(0, [1, 1], [], 1)], []))
    assert blocking.apply(torch.zeros(1, 3)).isinf().any()
    blocking.update_state(BatchUpdate(0, [0], [], []))
    assert not blocking.apply(torch.zeros(1, 3)).isinf().any()
