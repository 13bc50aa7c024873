"""Ratios and times by hand."""

import pytest

from tests.benchmarks.comparison import Figures, Point, common_target, quality_table, ratio_table, ratios, seconds_until, speed_table
from tests.benchmarks.contestants import Turn
from tests.benchmarks.turns import Worked


def figures(*seconds: float, tokens: int = 40, peak: int = 10**9) -> Figures:
    return Figures([Turn(s, Worked(samples=4, prompt_tokens=12, response_tokens=tokens)) for s in seconds], peak, idle_cpu=0.0)


def test_medians_are_of_the_rates_of_single_updates():
    found = figures(2.0, 1.0, 4.0)
    assert (found.seconds, found.samples_per_second, found.tokens_per_second) == (2.0, 2.0, 20.0)


def test_ratios_are_taken_within_rounds():
    slow, fast = figures(4.0, 8.0), figures(2.0, 2.0)
    assert ratios(fast, slow, "samples") == [2.0, 4.0]


def test_fewer_tokens_in_the_same_time_are_less_per_token_but_not_per_sample():
    ours, other = figures(1.0, tokens=20), figures(1.0, tokens=40)
    assert ratios(ours, other, "samples") == [1.0]
    assert ratios(ours, other, "response_tokens") == [0.5]


CURVE = [Point(0, 0.0, 3.0), Point(5, 50.0, 2.0), Point(10, 100.0, 2.2), Point(15, 150.0, 1.0)]


@pytest.mark.parametrize(("target", "seconds"), [(2.5, 25.0), (2.0, 50.0), (1.6, 125.0), (0.5, None)])
def test_the_time_to_a_reverse_kl_lies_on_the_line_between_two_students(target, seconds):
    assert seconds_until(CURVE, target) == (None if seconds is None else pytest.approx(seconds))


def test_the_common_target_is_what_the_worst_reached():
    assert common_target({"ours": CURVE, "plain": [Point(0, 0.0, 3.0), Point(5, 9.0, 1.5)]}) == 1.5


def test_the_tables_say_all_figures():
    both = {"ours": figures(1.0), "trl": figures(2.5, peak=4 * 10**9)}
    assert speed_table(both).rows[0] == ("ours", "4.00", "40", "1.00", "1.00-1.00", "40", "1.00", "0.00")
    assert ratio_table(both).rows == [("ours / trl", "2.50", "2.50-2.50", "2.50", "0.25")]
    assert quality_table({"ours": CURVE}, 1.6).rows == [("ours", "3.000, 2.000, 2.200, 1.000", "125")]
