"""The figures of an experiment against plain loops, and what an interval means."""

from dataclasses import replace

import numpy as np
import pytest

from minirl.evaluation.comparison import Method, Scores, brief, compare, picture, tables

SEEDS = [10, 20, 30]


def scores(draw, prompts=40, seeds=2, shift=0.0, hard=None) -> Scores:
    """Prompts of very different difficulty, which two methods share."""
    lengths = draw.integers(1, 9, (seeds, prompts))
    rouge = (draw.uniform(0, 60, prompts) if hard is None else hard) + shift + draw.normal(0, 0.5, (seeds, prompts))
    return Scores(rouge, lengths * draw.uniform(0.5, 1.5, (seeds, prompts)), lengths)


@pytest.fixture
def methods():
    draw = np.random.default_rng(0)
    hard = draw.uniform(0, 60, 40)
    sft = Method("sft", "SFT", SEEDS, {"test": [scores(draw, hard=hard) for _ in range(3)]}, None, 100.0)
    better = Method("mini", "MiniLLM", SEEDS, {"test": [scores(draw, shift=1.0, hard=hard) for _ in range(3)]}, None, 100.0, 90.0, 12.0)
    return [sft, better]


def test_means_are_over_runs_seeds_and_prompts_and_kl_is_pooled_over_tokens(methods):
    found = compare(methods[1], methods[0], "test")
    runs = methods[1].sets["test"]
    assert found.rouge_l.mean == pytest.approx(np.mean([run.rouge_l.mean() for run in runs]))
    assert found.reverse_kl.mean == pytest.approx(sum(run.kl_sums.sum() for run in runs) / sum(run.lengths.sum() for run in runs))
    assert found.rouge_l_between_seeds == pytest.approx(np.std([run.rouge_l.mean() for run in runs], ddof=1) / 3**0.5)


def test_pairing_by_prompt_tells_apart_what_the_spread_of_prompts_would_hide(methods):
    found = compare(methods[1], methods[0], "test")
    mean, (low, high) = found.rouge_l_gain
    assert low < mean < high and low > 0 and mean == pytest.approx(1.0, abs=0.3)
    assert found.rouge_l.high - found.rouge_l.low > 20 * (high - low)


def test_the_interval_of_the_kl_gain_is_that_of_a_plain_bootstrap(methods):
    ours, theirs = (method.joined("test") for method in reversed(methods))
    draw, differences = np.random.default_rng(5), []
    for _ in range(4000):
        chosen = draw.integers(0, 40, 40)
        differences.append(np.subtract(*(one.kl_sums[:, chosen].sum() / one.lengths[:, chosen].sum() for one in (ours, theirs))))
    mean, interval = compare(methods[1], methods[0], "test").reverse_kl_gain
    width = np.quantile(differences, 0.975) - np.quantile(differences, 0.025)
    assert interval == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=0.1 * width)


def test_scores_are_read_as_an_evaluation_writes_them(tmp_path):
    lengths = np.array([[2, 1, 3], [1, 1, 2]])
    np.savez(tmp_path / "a.npz", **{"rouge_l": np.arange(6).reshape(2, 3), "lengths": lengths, "own/reverse_kl": np.arange(10.0)})
    found = Scores.read(tmp_path / "a.npz")
    assert found.kl_sums.tolist() == [[0 + 1, 2, 3 + 4 + 5], [6, 7, 8 + 9]]


def test_a_difference_whose_interval_leaves_zero_is_starred_and_the_baseline_has_none(methods):
    of_set, work = tables(methods, "sft")
    assert [row[0] for row in of_set.rows] == ["SFT", "MiniLLM"]
    assert of_set.rows[0][4] == "" and of_set.rows[1][4].endswith("*")
    assert work.rows[1] == ("MiniLLM", "100", "90", "12 s")


def test_a_change_is_compared_with_what_it_changes_at_its_own_seeds(methods):
    draw = np.random.default_rng(1)
    change = Method("less", "without something", [20], {"test": [scores(draw)]}, "mini")
    of_all, of_changes, work = tables([*methods, change], "sft")
    assert [row[0] for row in of_all.rows] == ["SFT", "MiniLLM", "without something"]
    assert of_changes.title == "Set test, against MiniLLM at training seed 20"
    assert [row[:2] for row in of_changes.rows] == [("MiniLLM", "1"), ("without something", "1")]
    assert of_changes.rows[0][4] == "" and len(brief([*methods, change], "sft")) == 2
    gain = compare(change, methods[1].at([20]), "test").rouge_l_gain[0]
    assert gain == pytest.approx(change.sets["test"][0].rouge_l.mean() - methods[1].sets["test"][1].rouge_l.mean())
    assert len(picture([*methods, change], "sft").axes) == 4
    assert len(tables([methods[0], change], "sft")) == 2, "without the row that it changes, only the baseline is there"


def test_in_brief_it_fits_a_terminal(methods):
    (table,) = brief(methods, "sft")
    assert table.rows[0][2] == "" and table.rows[1][2].endswith("*")
    assert max(len(" ".join(row)) for row in table.rows) < 60


@pytest.mark.parametrize("sets", [("test",), ("test", "other")])
def test_the_picture_has_two_panels_a_set_with_the_first_row_on_top(methods, sets):
    methods = [replace(method, sets={name: method.sets["test"] for name in sets}) for method in methods]
    axes = picture(methods, "sft").axes
    assert len(axes) == 2 * len(sets) and all(one.yaxis_inverted() for one in axes)
