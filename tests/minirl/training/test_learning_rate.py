"""The learning rate: warm-up, constant and cosine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minirl.config.stages import OptimizerStageConfig
from minirl.training.learning_rate import learning_rate


def rates(total: int, **settings) -> list[float]:
    config = OptimizerStageConfig(learning_rate=8.0, **settings)
    return [learning_rate(config, update, total) for update in range(total)]


def test_warm_up_rises_by_equal_steps_to_the_full_rate_and_never_starts_at_zero():
    assert rates(6, warmup_updates=4) == [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]
    assert rates(3) == [8.0, 8.0, 8.0]


def test_the_cosine_falls_from_the_full_rate_by_the_share_of_updates_after_warm_up():
    assert rates(6, warmup_updates=2, schedule="cosine", min_learning_rate=2.0) == pytest.approx(
        [4.0, 8.0, 8.0, 2 + 6 * (1 + 2**-0.5) / 2, 5.0, 2 + 6 * (1 - 2**-0.5) / 2]
    )


def test_the_cosine_ends_at_its_minimum_and_stays_there():
    config = OptimizerStageConfig(learning_rate=8.0, schedule="cosine", min_learning_rate=2.0)
    assert [learning_rate(config, update, 4) for update in (4, 5, 400)] == pytest.approx([2.0, 2.0, 2.0])


@given(st.integers(0, 20), st.integers(1, 40), st.floats(0, 8), st.sampled_from(["constant", "cosine"]))
def test_rates_lie_between_their_bounds_and_never_rise_after_warm_up(warmup, total, low, schedule):
    all_rates = rates(total, warmup_updates=warmup, schedule=schedule, min_learning_rate=low)
    assert all(0 < rate <= 8.0 for rate in all_rates)
    after = all_rates[warmup:]
    assert after == sorted(after, reverse=True) and all(rate >= low - 1e-12 for rate in after)
