"""The side-by-side comparison's ratios and times, against values computed by hand."""

from dataclasses import asdict

import pytest

from tests.benchmarks.comparison import (
    ContestantResult,
    Point,
    common_target,
    overview_table,
    quality_table,
    ratio_table,
    ratios,
    seconds_until,
    speed_table,
)
from tests.benchmarks.contestants import TimedUpdate
from tests.benchmarks.protocol import UpdateCounts


def result(*seconds: float, tokens: int = 40, peak: int = 10**9) -> ContestantResult:
    counts = UpdateCounts(samples=4, prompt_tokens=12, response_tokens=tokens)
    return ContestantResult([TimedUpdate(s, counts) for s in seconds], peak, idle_cpu=0.0)


def test_medians_are_of_the_rates_of_single_updates():
    three_updates = result(2.0, 1.0, 4.0)
    assert (three_updates.seconds, three_updates.samples_per_second, three_updates.tokens_per_second) == (2.0, 2.0, 20.0)


def test_ratios_are_taken_within_rounds():
    slow, fast = result(4.0, 8.0), result(2.0, 2.0)
    assert ratios(fast, slow, "samples") == [2.0, 4.0]


def test_fewer_tokens_in_the_same_time_lower_the_token_rate_but_not_the_sample_rate():
    ours, other = result(1.0, tokens=20), result(1.0, tokens=40)
    assert ratios(ours, other, "samples") == [1.0]
    assert ratios(ours, other, "response_tokens") == [0.5]


CURVE = [Point(0, 0.0, 3.0), Point(5, 50.0, 2.0), Point(10, 100.0, 2.2), Point(15, 150.0, 1.0)]


@pytest.mark.parametrize(("target", "seconds"), [(2.5, 25.0), (2.0, 50.0), (1.6, 125.0), (0.5, None)])
def test_the_time_to_a_reverse_kl_lies_on_the_line_between_two_students(target, seconds):
    assert seconds_until(CURVE, target) == (None if seconds is None else pytest.approx(seconds))


def test_the_common_target_is_the_lowest_reverse_kl_of_the_worst_contestant():
    assert common_target({"ours": CURVE, "plain": [Point(0, 0.0, 3.0), Point(5, 9.0, 1.5)]}) == 1.5


def test_the_tables_hold_all_measurements():
    both = {"ours": result(1.0), "trl": result(2.5, peak=4 * 10**9)}
    assert speed_table(both).rows[0] == ("ours", "4.00", "40", "1.00", "1.00-1.00", "40", "1.00", "0.00")
    assert ratio_table(both).rows == [("ours / trl", "2.50", "2.50-2.50", "2.50", "0.25")]
    assert quality_table({"ours": CURVE}, 1.6).rows == [("ours", "3.000, 2.000, 2.200, 1.000", "125")]


def test_the_overview_has_every_part_and_says_which_memory_is_fixed():
    small = {"figures": {"ours": asdict(result(1.0, peak=3 * 10**9))}, "curves": {}}
    curves = {"ours": [asdict(point) for point in CURVE]}
    large = {"figures": {"ours": asdict(result(2.0, peak=4 * 10**9)), "trl": asdict(result(7.0))}, "curves": curves}
    table = overview_table({("smallest", "float32"): small, ("tiny", "float32"): large, ("tiny", "bfloat16"): large})
    assert table.rows == [
        ("smallest, float32: ours", "1.00", "", "3.00", "100 %", ""),
        ("tiny, float32: ours", "2.00", "", "4.00", "75 %", "1.000 after 15"),
        ("tiny, float32: trl", "7.00", "3.50", "1.00", "", ""),
        ("tiny, bfloat16: ours", "2.00", "", "4.00", "", "1.000 after 15"),
        ("tiny, bfloat16: trl", "7.00", "3.50", "1.00", "", ""),
    ]
