"""Rewards, returns, whitening and exact weights: by hand, against the oracles, and for any padding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minirl.objective.credit import exact_returns, returns, rewards, weights_before, whiten, whitening_statistics
from tests import oracles

NAN = float("nan")
PRESETS = {
    "paper": {"kind": "future"},
    "lmops": {"kind": "reward_to_go", "discount": 0.95},
}
reward_rows = st.lists(st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=7), min_size=1, max_size=4)


def grid(rows, padding=0, fill=0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ragged rows as a left-aligned grid and its mask."""
    width = max(map(len, rows)) + padding
    values = torch.full((len(rows), width), fill, dtype=torch.float64)
    mask = torch.zeros(len(rows), width)
    for i, row in enumerate(rows):
        values[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
        mask[i, : len(row)] = 1
    return values, mask


def unpadded(values: torch.Tensor, rows) -> list[list[float]]:
    return [values[i, : len(row)].tolist() for i, row in enumerate(rows)]


# Rewards


def test_rewards_by_hand():
    """(log p - log q) / 0.5, clipped to +-3: -0.5 -> -1, -4 -> -8 -> -3, +2 -> 4 -> 3."""
    student, mask = grid([[-1.0, -1.0, -3.0]], padding=1)
    teacher, _ = grid([[-1.5, -5.0, -1.0]], padding=1, fill=NAN)
    assert rewards(teacher, student, mask, scale=0.5, clip=3.0).tolist() == [[-1.0, -3.0, 3.0, 0.0]]
    assert rewards(teacher, student, mask).tolist() == [[-0.5, -4.0, 2.0, 0.0]]


def test_rewards_are_detached():
    student = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    assert not rewards(torch.tensor([[-1.5, -2.5]]), student, torch.ones(1, 2)).requires_grad


@given(st.floats(-300, 300))
def test_rewards_of_lmops(reward):
    value = rewards(
        torch.tensor([[reward]], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1), scale=0.5, clip=100.0
    )
    assert value.item() == pytest.approx(oracles.lmops_reward(reward))


# Returns


@pytest.mark.parametrize(
    "kind, discount, length_normalization, expected",
    [
        ("future", 1.0, True, [-3.0, -4.0, 0.0]),  # paper
        ("reward_to_go", 1.0, True, [-7 / 3, -3.0, -4.0]),  # lmops without discount; n = 3, 2, 1
        ("reward_to_go", 0.95, True, [-2.17, -2.9, -4.0]),  # lmops
        ("future", 1.0, False, [-6.0, -4.0, 0.0]),
        ("future", 0.5, False, [-4.0, -4.0, 0.0]),
        ("reward_to_go", 1.0, False, [-7.0, -6.0, -4.0]),
        ("immediate", 1.0, False, [-1.0, -2.0, -4.0]),  # opd
    ],
)
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
@pytest.mark.parametrize("fill", [0.0, 1e3])
def test_returns_by_hand(kind, discount, length_normalization, expected, dtype, fill):
    """r = [-1, -2, -4, pad, pad], with any values in the padding: the table of the mathematics, section 2."""
    reward, mask = grid([[-1.0, -2.0, -4.0]], padding=2, fill=fill)
    value = returns(reward, mask.to(dtype), kind=kind, discount=discount, length_normalization=length_normalization)
    assert value[0].tolist() == pytest.approx([*expected, 0.0, 0.0])


def test_the_first_end_token_is_the_last_action():
    """Its reward counts once in every return before it; values after it count in no return."""
    reward, mask = grid([[0.0, 0.0, -6.0]], padding=1, fill=-100.0)
    assert returns(reward, mask, kind="future")[0].tolist() == [-3.0, -6.0, 0.0, 0.0]
    assert returns(reward, mask, kind="reward_to_go")[0].tolist() == [-2.0, -3.0, -6.0, 0.0]


@settings(deadline=None)
@given(reward_rows, st.integers(0, 3))
@pytest.mark.parametrize("preset, oracle", [("paper", oracles.paper_returns), ("lmops", oracles.lmops_returns)])
def test_returns_agree_with_the_oracle_at_any_padding(preset, oracle, rows, padding):
    reward, mask = grid(rows, padding, fill=NAN)
    value = returns(reward, mask, **PRESETS[preset])
    for row_returns, row in zip(unpadded(value, rows), rows, strict=True):
        assert row_returns == pytest.approx(oracle(row), abs=1e-9)
    assert not value[mask == 0].any()


def test_returns_of_an_empty_response_are_zero():
    value = returns(torch.full((1, 3), -5.0), torch.zeros(1, 3), kind="future")
    assert value.tolist() == [[0.0, 0.0, 0.0]]


def looped(factors: torch.Tensor, terms: torch.Tensor) -> torch.Tensor:
    """G_t = terms_t + factors_t G_{t+1}, token by token from the end."""
    values, running = torch.zeros_like(terms), torch.zeros_like(terms[:, 0])
    for t in reversed(range(terms.shape[1])):
        values[:, t] = running = terms[:, t] + factors[:, t] * running
    return values


def long_responses(length: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rewards, ratios and mask [4, length] of responses, one of them of full length, one of a single token."""
    draw = torch.Generator().manual_seed(length)
    counts = torch.tensor([length, 1, (length + 1) // 2, max(1, length - 1)])
    numbers = torch.randn(2, 4, length, dtype=dtype, generator=draw)
    return numbers[0], torch.exp(0.1 * numbers[1]), torch.arange(length)[None] < counts[:, None]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-13), (torch.float32, 2e-5)])
@pytest.mark.parametrize("length", [1, 2, 3, 5, 64, 100, 1024])
def test_scans_agree_with_loops_over_tokens(length, dtype, tolerance):
    """Relative to the size of the summed terms, because rounding of a sum that cancels is relative to them."""
    reward, ratio, mask = long_responses(length, dtype)

    def agree(value: torch.Tensor, factors: torch.Tensor, terms: torch.Tensor) -> bool:
        size = looped(factors.abs(), terms.abs()).clamp(min=1)
        return bool(((value - looped(factors, terms)).abs() <= tolerance * size)[mask].all()) and not value[~mask].any()

    for discount in (1.0, 0.95):
        value = returns(reward, mask, kind="reward_to_go", discount=discount, length_normalization=False)
        assert agree(value, torch.full_like(reward, discount), reward * mask)
    weighted = torch.cat([(ratio * mask)[:, 1:], torch.zeros(4, 1, dtype=dtype)], dim=1)
    following = torch.cat([reward[:, 1:], torch.zeros(4, 1, dtype=dtype)], dim=1)
    assert agree(exact_returns(reward, ratio, mask), weighted, weighted * following)
    before = torch.ones_like(ratio)
    for t in range(1, length):
        before[:, t] = before[:, t - 1] * ratio[:, t - 1]
    assert ((weights_before(ratio, mask) - before).abs() <= tolerance * before)[mask].all()


# Whitening


def whitened(rows, limit, padding=0):
    mean, variance = whitening_statistics([np.array(row) for row in rows], limit)
    values, mask = grid(rows, padding)
    return whiten(values, mask, mean=mean, variance=variance), mask


def test_whitening_by_hand():
    """[-4] and [-2, -2] on a grid of 2 x 4: mean -8/8 = -1, variance 24/8 - 1 = 2; zeros in the padding count and stay zero."""
    value, _ = whitened([[-4.0], [-2.0, -2.0]], limit=4)
    root = (2 + 1e-8) ** 0.5
    assert value[0].tolist() == pytest.approx([-3 / root, 0.0])
    assert value[1].tolist() == pytest.approx([-1 / root, -1 / root])


@settings(deadline=None)
@given(reward_rows, st.integers(0, 3), st.integers(7, 12))
def test_whitening_agrees_with_the_oracle_at_any_padding(rows, padding, limit):
    value, mask = whitened(rows, limit, padding)
    for whitened_row, expected in zip(unpadded(value, rows), oracles.lmops_whitened(rows, limit), strict=True):
        assert whitened_row == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert not value[mask == 0].any()


def test_whitening_statistics_of_float32_rows_are_summed_in_float64():
    """In float32, the sum of squares 1e8 + 4096 x 1 would lose all 4096 ones."""
    row = np.array([1e4] + [1.0] * 4096, np.float32)
    mean, variance = whitening_statistics([row], len(row))
    assert mean == pytest.approx((1e4 + 4096) / 4097, rel=1e-12)
    assert variance == pytest.approx((1e8 + 4096) / 4097 - mean**2, rel=1e-12)


# Exact weights


def test_exact_returns_by_hand():
    """G_2 = 3 * (-4) = -12, G_1 = 2 * (-2 - 12) = -28; the first ratio occurs in none."""
    reward, mask = grid([[-1.0, -2.0, -4.0]], padding=1, fill=9.0)
    ratio, _ = grid([[7.0, 2.0, 3.0]], padding=1, fill=9.0)
    assert exact_returns(reward, ratio, mask).tolist() == [[-28.0, -12.0, 0.0, 0.0]]


def test_weights_before_by_hand():
    """The product of the ratios before a token; the last ratio occurs in none."""
    ratio, mask = grid([[7.0, 2.0, 3.0], [5.0]], padding=1, fill=NAN)
    weights = weights_before(ratio, mask)
    assert weights[0, :3].tolist() == [1.0, 7.0, 14.0]
    assert weights[1, 0].item() == 1.0
    assert weights.isfinite().all()


def test_with_ratios_of_one_exact_returns_are_the_plain_future():
    reward, mask = grid([[-1.0, -2.0, -4.0], [3.0]], padding=1)
    exact = exact_returns(reward, torch.ones_like(reward), mask)
    assert torch.equal(exact, returns(reward, mask, kind="future", length_normalization=False))


def test_exact_weights_are_detached():
    ratio = torch.tensor([[1.5, 2.0]], requires_grad=True)
    mask = torch.ones(1, 2)
    assert not weights_before(ratio, mask).requires_grad
    assert not exact_returns(torch.ones(1, 2), ratio, mask).requires_grad
