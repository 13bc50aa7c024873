"""Comparison of methods: figures and intervals against plain loops and a plain bootstrap, tables, plot."""

from dataclasses import replace

import numpy as np
import pytest

from minirl.evaluation.comparison import Method, RunScores, brief_tables, compare, difference_plot, full_tables

SEEDS = [10, 20, 30]


def scores(draw, prompts=40, seeds=2, shift=0.0, hard=None) -> RunScores:
    """Scores on prompts of very different difficulty. hard: the mean of each prompt, so that two methods can share it."""
    lengths = draw.integers(1, 9, (seeds, prompts))
    rouge = (draw.uniform(0, 60, prompts) if hard is None else hard) + shift + draw.normal(0, 0.5, (seeds, prompts))
    return RunScores(rouge, lengths, lengths * draw.uniform(0.5, 1.5, (seeds, prompts)))


@pytest.fixture
def methods():
    draw = np.random.default_rng(0)
    hard = draw.uniform(0, 60, 40)
    sft = Method("sft", "SFT", SEEDS, {"test": [scores(draw, hard=hard) for _ in range(3)]}, None, 100.0)
    better = Method("mini", "MiniLLM", SEEDS, {"test": [scores(draw, shift=1.0, hard=hard) for _ in range(3)]}, None, 100.0, 90.0, 12.0)
    return [sft, better]


def test_means_are_over_runs_seeds_and_prompts_and_kl_is_pooled_over_tokens(methods):
    comparison = compare(methods[1], methods[0], "test")
    runs = methods[1].scores["test"]
    assert comparison.rouge_l.estimate.mean == pytest.approx(np.mean([run.rouge_l.mean() for run in runs]))
    assert comparison.reverse_kl.estimate.mean == pytest.approx(
        sum(run.kl_sums.sum() for run in runs) / sum(run.lengths.sum() for run in runs)
    )
    assert comparison.rouge_l.run_standard_error == pytest.approx(np.std([run.rouge_l.mean() for run in runs], ddof=1) / 3**0.5)


def test_pairing_by_prompt_shows_a_difference_that_the_spread_of_prompts_would_hide(methods):
    comparison = compare(methods[1], methods[0], "test")
    mean, (low, high) = comparison.rouge_l.difference
    assert low < mean < high and low > 0 and mean == pytest.approx(1.0, abs=0.3)
    assert comparison.rouge_l.estimate.high - comparison.rouge_l.estimate.low > 20 * (high - low)


def test_the_interval_of_the_kl_difference_equals_a_plain_bootstrap(methods):
    scores, baseline_scores = (method.all_scores("test") for method in reversed(methods))
    draw, differences = np.random.default_rng(5), []
    for _ in range(4000):
        chosen = draw.integers(0, 40, 40)
        differences.append(np.subtract(*(s.kl_sums[:, chosen].sum() / s.lengths[:, chosen].sum() for s in (scores, baseline_scores))))
    mean, interval = compare(methods[1], methods[0], "test").reverse_kl.difference
    width = np.quantile(differences, 0.975) - np.quantile(differences, 0.025)
    assert interval == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=0.1 * width)


def test_scores_are_read_from_the_file_that_an_evaluation_writes(tmp_path):
    lengths = np.array([[2, 1, 3], [1, 1, 2]])
    np.savez(tmp_path / "a.npz", **{"rouge_l": np.arange(6).reshape(2, 3), "lengths": lengths, "own/reverse_kl": np.arange(10.0)})
    run = RunScores.read(tmp_path / "a.npz")
    assert run.kl_sums.tolist() == [[0 + 1, 2, 3 + 4 + 5], [6, 7, 8 + 9]]


def test_a_difference_whose_interval_excludes_zero_is_starred_and_the_baseline_has_none(methods):
    table, work = full_tables(methods, "sft")
    assert [row[0] for row in table.rows] == ["SFT", "MiniLLM"]
    assert table.rows[0][4] == "" and table.rows[1][4].endswith("*")
    assert work.rows[1] == ("MiniLLM", "100", "90", "12 s")


def test_a_change_is_compared_with_the_row_it_changes_at_its_own_seeds(methods):
    draw = np.random.default_rng(1)
    change = Method("less", "without something", [20], {"test": [scores(draw)]}, "mini")
    all_methods, only_change, work = full_tables([*methods, change], "sft")
    assert [row[0] for row in all_methods.rows] == ["SFT", "MiniLLM", "without something"]
    assert only_change.title == "Set test, against MiniLLM at training seed 20"
    assert [row[:2] for row in only_change.rows] == [("MiniLLM", "1"), ("without something", "1")]
    assert only_change.rows[0][4] == "" and len(brief_tables([*methods, change], "sft")) == 2
    difference = compare(change, methods[1].with_seeds([20]), "test").rouge_l.difference[0]
    assert difference == pytest.approx(change.scores["test"][0].rouge_l.mean() - methods[1].scores["test"][1].rouge_l.mean())
    assert len(difference_plot([*methods, change], "sft").axes) == 4
    assert len(full_tables([methods[0], change], "sft")) == 2, "without the row that it changes, it is compared only with the baseline"


def test_brief_tables_fit_a_terminal(methods):
    (table,) = brief_tables(methods, "sft")
    assert table.rows[0][2] == "" and table.rows[1][2].endswith("*")
    assert max(len(" ".join(row)) for row in table.rows) < 60


@pytest.mark.parametrize("sets", [("test",), ("test", "other")])
def test_the_plot_has_two_panels_for_each_set_with_the_first_row_on_top(methods, sets):
    methods = [replace(method, scores={name: method.scores["test"] for name in sets}) for method in methods]
    axes = difference_plot(methods, "sft").axes
    assert len(axes) == 2 * len(sets) and all(panel.yaxis_inverted() for panel in axes)


def test_where_no_kl_was_measured_methods_are_compared_by_rouge_l_alone(methods, tmp_path):
    """An evaluation with `no_repeat_ngram` writes no KL."""
    full, work = full_tables(methods, "sft")
    lengths = np.array([[2, 1, 3], [1, 1, 2]])
    np.savez(tmp_path / "a.npz", **{"rouge_l": np.arange(6).reshape(2, 3), "lengths": lengths})
    assert RunScores.read(tmp_path / "a.npz").kl_sums is None
    blocked = [replace(method, scores={"test": [replace(run, kl_sums=None) for run in method.scores["test"]]}) for method in methods]
    table, _ = full_tables(blocked, "sft")
    assert table.columns == (*full.columns[:5], "tokens")
    assert [row[:5] for row in table.rows] == [row[:5] for row in full.rows]
    assert brief_tables(blocked, "sft")[0].columns == ("method", "Rouge-L", "diff.")
    assert len(difference_plot(blocked, "sft").axes) == 1
