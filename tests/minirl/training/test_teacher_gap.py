"""The checksum between the teacher that is rebuilt from hidden states and what it says itself, of some tokens or of all."""

import numpy as np
import pytest
import torch

from minirl.objective.divergence import TokenStatistics
from minirl.training.update import teacher_gap
from minirl.types import TeacherScores

LENGTHS = (5, 1, 9)


def rebuilt() -> TokenStatistics:
    draw = torch.Generator().manual_seed(0)
    numbers = torch.rand(2, sum(LENGTHS), generator=draw)
    return TokenStatistics(torch.zeros(sum(LENGTHS)), teacher_logprobs=-numbers[0], teacher_log_normalizers=10 + numbers[1])


def told(tokens: TokenStatistics, every: int) -> list[TeacherScores]:
    """What a teacher says that agrees, of the first of every so many tokens of each sequence."""
    scores, start = [], 0
    for length in LENGTHS:
        silent = np.arange(length) % every > 0
        rows = [tensor[start : start + length].numpy().copy() for tensor in (tokens.teacher_logprobs, tokens.teacher_log_normalizers)]
        for row in rows:
            row[silent] = np.nan
        scores.append(TeacherScores(*rows, np.zeros((length, 2), np.float32)))
        start += length
    return scores


@pytest.mark.parametrize("every", [1, 4, 100])
def test_it_is_nothing_where_both_agree_whatever_was_not_told(every):
    assert teacher_gap(rebuilt(), told(rebuilt(), every), "cpu")["teacher_gap_max"] == 0


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("name", ["logprobs", "log_normalizers"])
def test_one_told_token_that_differs_shows_relative_to_the_log_normaliser(every, name):
    scores = told(rebuilt(), every)
    getattr(scores[2], name)[4] += 1.0
    shipped = scores[2].log_normalizers[4]
    assert teacher_gap(rebuilt(), scores, "cpu")["teacher_gap_max"].item() == pytest.approx(1.0 / shipped, rel=1e-5)


@pytest.mark.parametrize("every", [1, 4])
def test_a_rebuilt_value_that_is_no_number_shows(every):
    tokens = rebuilt()
    tokens.teacher_logprobs[0] = torch.nan
    assert teacher_gap(tokens, told(rebuilt(), every), "cpu")["teacher_gap_max"].isnan()
