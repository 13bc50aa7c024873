"""N-gram blocking: by hand, and step by step against transformers' own `NoRepeatNGramLogitsProcessor`."""

import numpy as np
import pytest
import torch
from transformers import NoRepeatNGramLogitsProcessor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from actors.engine.ngram_blocking import NGRAM, NgramBlocking, SeenNgrams


def test_what_would_repeat_a_bigram_by_hand():
    """After 1 2 3 1, the 2 would repeat (1, 2); in the response 2 1 after it, both 2 and nothing else follow 1."""
    response: list[int] = []
    seen = SeenNgrams(2, [1, 2, 3, 1], response)
    assert seen.completing() == [2]
    response += [4, 1]
    assert seen.completing() == [2, 4]
    assert SeenNgrams(1, [5, 3], []).completing() == [3, 5]
    assert SeenNgrams(6, [1, 2], [3]).completing() == []


def added(index: int, prompt: list[int], response: list[int], n: int | None):
    return index, SamplingParams(extra_args={NGRAM: n} if n else None), prompt, response


@pytest.mark.parametrize("n", [1, 2, 3])
def test_each_step_is_that_of_transformers(n):
    """Few tokens, so that much repeats. One row is not blocked; rows swap places midway, as vLLM does with its batch."""
    draw = np.random.default_rng(n)
    prompts = [draw.integers(0, 4, length).tolist() for length in (1, 6, 9)]
    responses: list[list[int]] = [[], [], []]
    blocking, theirs = NgramBlocking(None, torch.device("cpu"), False), NoRepeatNGramLogitsProcessor(n)
    ours = [n, None, n]
    blocking.update_state(BatchUpdate(3, [], [added(i, prompts[i], responses[i], ours[i]) for i in range(3)], []))
    blocked = 0
    for step in range(8):
        logits = torch.randn(3, 5)
        found = blocking.apply(logits.clone())
        for row in range(3):
            expected = logits[row]
            if ours[row]:
                expected = theirs(torch.tensor([prompts[row] + responses[row]]), logits[row : row + 1].clone())[0]
            assert torch.equal(found[row], expected)
            blocked += int(found[row].isinf().sum())
            responses[row].append(int(draw.integers(0, 4)))
        if step == 3:
            blocking.update_state(BatchUpdate(3, [], [], [(0, 1, MoveDirectionality.SWAP)]))
            for rows in (prompts, responses, ours):
                rows[0], rows[1] = rows[1], rows[0]
    assert blocked


def test_a_request_that_left_blocks_nothing():
    blocking = NgramBlocking(None, torch.device("cpu"), False)
    blocking.update_state(BatchUpdate(1, [], [added(0, [1, 1], [], 1)], []))
    assert blocking.apply(torch.zeros(1, 3)).isinf().any()
    blocking.update_state(BatchUpdate(0, [0], [], []))
    assert not blocking.apply(torch.zeros(1, 3)).isinf().any()
