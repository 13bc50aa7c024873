"""The teacher's data set on disk: who keeps a gold response, and what a kill leaves."""

import numpy as np
import pytest

from launch.generated import _divide, _drop_half_line
from minirl.prompts import Example
from minirl.rollout import Prompt, Sequence


def example(number: int, targets: int) -> Example:
    tokens = np.arange(4 + targets)
    return Example(Prompt(tokens[:4], number), Sequence(tokens, tokens >= 4))


EXAMPLES = [example(number, number % 3) for number in range(30)]


@pytest.mark.parametrize(("share", "gold"), [(0.0, 0), (0.1, 3), (0.5, 15), (0.9, 20)])
def test_so_many_prompts_keep_their_gold_response_where_they_have_one(share, gold):
    kept, asked = _divide(EXAMPLES, share, seed=1)
    assert len(kept) == gold and all(one.sequence.targets for one in kept)
    assert sorted(one.prompt.index for one in kept + asked) == list(range(30))


def test_the_seed_decides_which():
    kept = [[one.prompt.index for one in _divide(EXAMPLES, 0.3, seed)[0]] for seed in (1, 1, 2)]
    assert kept[0] == kept[1] != kept[2]


@pytest.mark.parametrize(
    ("text", "lines", "left"), [(b"a\nbb\nc", 2, b"a\nbb\n"), (b"a\nbb\n", 2, b"a\nbb\n"), (b"abc", 0, b""), (b"", 0, b"")]
)
def test_a_half_written_line_is_cut(tmp_path, text, lines, left):
    file = tmp_path / "responses.jsonl"
    file.write_bytes(text)
    assert _drop_half_line(file) == lines and file.read_bytes() == left


def test_no_file_has_no_lines(tmp_path):
    assert _drop_half_line(tmp_path / "none") == 0
