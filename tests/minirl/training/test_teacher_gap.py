"""The checksum `teacher_gap`: the rebuilt teacher against values that the teacher sent."""

import numpy as np
import pytest
import torch

from minirl.objective.divergence import TokenStatistics
from minirl.training.teacher_checksum import sent_values, teacher_gap
from minirl.types import TeacherScores

LENGTHS = (5, 1, 9)


def rebuilt() -> TokenStatistics:
    draw = torch.Generator().manual_seed(0)
    numbers = torch.rand(2, sum(LENGTHS), generator=draw)
    return TokenStatistics(torch.zeros(sum(LENGTHS)), teacher_logprobs=-numbers[0], teacher_log_normalizers=10 + numbers[1])


def sent_scores(tokens: TokenStatistics, every: int) -> list[TeacherScores]:
    """Scores that agree with `tokens`, for every `every`-th token of each sequence; NaN for the others."""
    scores, start = [], 0
    for length in LENGTHS:
        not_sent = np.arange(length) % every > 0
        rows = [tensor[start : start + length].numpy().copy() for tensor in (tokens.teacher_logprobs, tokens.teacher_log_normalizers)]
        for row in rows:
            row[not_sent] = np.nan
        scores.append(TeacherScores(*rows, np.zeros((length, 2), np.float32)))
        start += length
    return scores


def gap(tokens: TokenStatistics, scores: list[TeacherScores]) -> torch.Tensor:
    return teacher_gap(tokens, *map(torch.from_numpy, sent_values(scores)))


@pytest.mark.parametrize("every", [1, 4, 100])
def test_the_gap_is_zero_where_both_agree_however_few_tokens_were_sent(every):
    assert gap(rebuilt(), sent_scores(rebuilt(), every)) == 0


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("name", ["logprobs", "log_normalizers"])
def test_the_gap_of_one_token_is_relative_to_its_log_normalizer(every, name):
    scores = sent_scores(rebuilt(), every)
    getattr(scores[2], name)[4] += 1.0
    sent = scores[2].log_normalizers[4]
    assert gap(rebuilt(), scores).item() == pytest.approx(1.0 / sent, rel=1e-5)


@pytest.mark.parametrize("every", [1, 4])
def test_a_rebuilt_value_that_is_nan_makes_the_gap_nan(every):
    tokens = rebuilt()
    tokens.teacher_logprobs[0] = torch.nan
    assert gap(tokens, sent_scores(rebuilt(), every)).isnan()
