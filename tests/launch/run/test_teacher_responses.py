"""The data set of `seqkd`: which prompts keep their gold response and which the teacher answers."""

import numpy as np
import pytest

from launch.run.teacher_responses import _split_gold
from minirl.data.examples import Example
from minirl.types import Prompt, TokenSequence


def example(number: int, targets: int) -> Example:
    tokens = np.arange(4 + targets)
    return Example(Prompt(tokens[:4], number), TokenSequence(tokens, tokens >= 4))


EXAMPLES = [example(number, number % 3) for number in range(30)]


@pytest.mark.parametrize(("share", "gold"), [(0.0, 0), (0.1, 3), (0.5, 15), (0.9, 20)])
def test_the_share_of_prompts_that_keep_an_existing_gold_response(share, gold):
    gold_examples, teacher_examples = _split_gold(EXAMPLES, share, seed=1)
    assert len(gold_examples) == gold and all(example.sequence.targets for example in gold_examples)
    assert sorted(example.prompt.index for example in gold_examples + teacher_examples) == list(range(30))


def test_the_seed_decides_which_prompts_keep_their_gold_response():
    gold_indices = [[example.prompt.index for example in _split_gold(EXAMPLES, 0.3, seed)[0]] for seed in (1, 1, 2)]
    assert gold_indices[0] == gold_indices[1] != gold_indices[2]
