"""The teacher's data set on disk: who keeps a gold response."""

import numpy as np
import pytest

from launch.run.teacher_responses import _divide
from minirl.data.examples import Example
from minirl.types import Prompt, TokenSequence


def example(number: int, targets: int) -> Example:
    tokens = np.arange(4 + targets)
    return Example(Prompt(tokens[:4], number), TokenSequence(tokens, tokens >= 4))


EXAMPLES = [example(number, number % 3) for number in range(30)]


@pytest.mark.parametrize(("share", "gold"), [(0.0, 0), (0.1, 3), (0.5, 15), (0.9, 20)])
def test_so_many_prompts_keep_their_gold_response_where_they_have_one(share, gold):
    kept, asked = _divide(EXAMPLES, share, seed=1)
    assert len(kept) == gold and all(one.sequence.targets for one in kept)
    assert sorted(one.prompt.index for one in kept + asked) == list(range(30))


def test_the_seed_decides_which():
    kept = [[one.prompt.index for one in _divide(EXAMPLES, 0.3, seed)[0]] for seed in (1, 1, 2)]
    assert kept[0] == kept[1] != kept[2]
