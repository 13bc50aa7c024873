"""Tables and plot of an experiment: each method against the baseline, paired by prompt, with bootstrap intervals.

A prompt's score is its mean over training seeds and sampling seeds. Intervals are 95 % of a bootstrap over prompts: they show how far
another set of prompts would move a figure. The standard error over the runs of a method shows how far another training seed would move it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minirl.evaluation.intervals import Estimate, bootstrap_counts, estimate, mean_and_standard_error, pooled_estimate
from minirl.tables import Table

RESAMPLES = 2000
Interval = tuple[float, float]


@dataclass(frozen=True)
class RunScores:
    """Scores of one run on one set, each [sampling seeds, prompts]. kl_sums: reverse KL of each response, nats; lengths: its tokens."""

    rouge_l: np.ndarray
    kl_sums: np.ndarray
    lengths: np.ndarray

    @classmethod
    def read(cls, file: Path) -> "RunScores":
        """From an evaluation's `<set>/<model>.npz`."""
        with np.load(file) as arrays:
            ends = np.cumsum(arrays["lengths"].ravel())
            sums = np.add.reduceat(arrays["own/reverse_kl"].astype(np.float64), np.concatenate([[0], ends[:-1]]))
            return cls(arrays["rouge_l"].astype(np.float64), sums.reshape(arrays["lengths"].shape), arrays["lengths"])


@dataclass(frozen=True)
class Method:
    """One row of the experiment with its runs, in the order of `seeds`.

    label: its name in tables. scores: [set][run]. changes: the name of the row that this one modifies, if any. The token counts and seconds
    are means over the runs.
    """

    name: str
    label: str
    seeds: list[int]
    scores: dict[str, list[RunScores]]
    changes: str | None = None
    target_tokens: float = 0.0
    sampled_tokens: float = 0.0
    training_seconds: float = 0.0

    def all_scores(self, set_name: str) -> RunScores:
        """The samples of all runs, one run after another: [runs x sampling seeds, prompts]."""
        runs = self.scores[set_name]
        return RunScores(*(np.concatenate([getattr(run, field) for run in runs]) for field in RunScores.__dataclass_fields__))

    def with_seeds(self, seeds: list[int]) -> "Method":
        """The method with only the runs of these seeds."""
        indices = [self.seeds.index(seed) for seed in seeds]
        return replace(self, seeds=seeds, scores={name: [runs[index] for index in indices] for name, runs in self.scores.items()})


@dataclass(frozen=True)
class ComparisonGroup:
    """Methods that are compared with one of them, the base."""

    base: Method
    methods: list[Method]
    note: str = ""

    def title(self, set_name: str) -> str:
        return f"Set {set_name}, against {self.base.label}{self.note}"


def comparison_groups(methods: list[Method], baseline: str) -> list[ComparisonGroup]:
    """First all methods against the baseline, then the methods that change another row against that row, at the changes' training seeds."""
    by_name = {method.name: method for method in methods}
    groups, changes_by_base = [ComparisonGroup(by_name[baseline], methods)], {}
    for method in methods:
        if method.changes in by_name and set(method.seeds) <= set(by_name[method.changes].seeds):
            changes_by_base.setdefault((method.changes, *method.seeds), []).append(method)
    for (name, *seeds), changes in changes_by_base.items():
        base = by_name[name].with_seeds(seeds)
        groups.append(ComparisonGroup(base, [base, *changes], f" at training seed {', '.join(map(str, seeds))}"))
    return groups


@dataclass(frozen=True)
class Comparison:
    """One method on one set. *_difference: the method minus the baseline, with its interval. Lower reverse KL is better.

    *_run_standard_error: standard error over training runs, None for one run.
    """

    runs: int
    rouge_l: Estimate
    rouge_l_run_standard_error: float | None
    rouge_l_difference: tuple[float, Interval]
    reverse_kl: Estimate
    reverse_kl_run_standard_error: float | None
    reverse_kl_difference: tuple[float, Interval]
    mean_response_tokens: float


def compare(method: Method, baseline: Method, set_name: str) -> Comparison:
    """Both methods must have the prompts of the set in the same order."""
    scores, baseline_scores, runs = method.all_scores(set_name), baseline.all_scores(set_name), method.scores[set_name]
    difference = estimate((scores.rouge_l.mean(0) - baseline_scores.rouge_l.mean(0))[None])
    return Comparison(
        runs=len(runs),
        rouge_l=estimate(scores.rouge_l),
        rouge_l_run_standard_error=mean_and_standard_error([run.rouge_l.mean() for run in runs])[1],
        rouge_l_difference=(difference.mean, (difference.low, difference.high)),
        reverse_kl=pooled_estimate(scores.kl_sums, scores.lengths),
        reverse_kl_run_standard_error=mean_and_standard_error([run.kl_sums.sum() / run.lengths.sum() for run in runs])[1],
        reverse_kl_difference=_kl_difference(scores, baseline_scores),
        mean_response_tokens=float(scores.lengths.mean()),
    )


def _kl_difference(scores: RunScores, baseline: RunScores) -> tuple[float, Interval]:
    """The difference of the pooled means, and its interval over the same bootstrap draws of prompts for both."""
    draws = bootstrap_counts(scores.lengths.shape[1], RESAMPLES, 0)
    means = [(draws @ s.kl_sums.sum(0)) / (draws @ s.lengths.sum(0)) for s in (scores, baseline)]
    low, high = np.quantile(means[0] - means[1], [0.025, 0.975])
    difference = scores.kl_sums.sum() / scores.lengths.sum() - baseline.kl_sums.sum() / baseline.lengths.sum()
    return float(difference), (float(low), float(high))


def full_tables(methods: list[Method], baseline: str) -> list[Table]:
    """One table for each group and set, then a table of the training work of each method."""
    comparisons = [_full_table(group, set_name) for group in comparison_groups(methods, baseline) for set_name in group.base.scores]
    work = [
        (m.label, f"{m.target_tokens:,.0f}", f"{m.sampled_tokens:,.0f}", f"{m.training_seconds:.0f} s")
        for m in methods
    ]  # fmt: skip
    return [*comparisons, Table("Work of a run", ("method", "tokens with gradient", "sampled", "training"), work)]


def brief_tables(methods: list[Method], baseline: str) -> list[Table]:
    """For a terminal of 80 columns: means and differences from the baseline, starred where the interval excludes 0."""
    return [_brief_table(group, set_name) for group in comparison_groups(methods, baseline) for set_name in group.base.scores]


def _brief_table(group: ComparisonGroup, set_name: str) -> Table:
    rows, base = [], group.base
    for method in group.methods:
        c, is_base = compare(method, base, set_name), method is base
        rouge_l, reverse_kl = _brief_difference(c.rouge_l_difference, 2, is_base), _brief_difference(c.reverse_kl_difference, 3, is_base)
        rows.append((method.label, f"{c.rouge_l.mean:.2f}", rouge_l, f"{c.reverse_kl.mean:.3f}", reverse_kl))
    return Table(group.title(set_name), ("method", "Rouge-L", "diff.", "rev. KL", "diff."), rows)


def _brief_difference(difference: tuple[float, Interval], digits: int, is_base: bool) -> str:
    mean, (low, high) = difference
    return "" if is_base else f"{mean:+.{digits}f}" + (" " if low <= 0 <= high else "*")


def _full_table(group: ComparisonGroup, set_name: str) -> Table:
    rows, base = [], group.base
    for method in group.methods:
        c = compare(method, base, set_name)
        is_base = method is base
        rows.append((
            method.label,
            str(c.runs),
            f"{c.rouge_l.mean:.2f} [{c.rouge_l.low:.2f}, {c.rouge_l.high:.2f}]",
            "" if c.rouge_l_run_standard_error is None else f"{c.rouge_l_run_standard_error:.2f}",
            "" if is_base else _full_difference(c.rouge_l_difference, 2),
            f"{c.reverse_kl.mean:.3f} [{c.reverse_kl.low:.3f}, {c.reverse_kl.high:.3f}]",
            "" if c.reverse_kl_run_standard_error is None else f"{c.reverse_kl_run_standard_error:.3f}",
            "" if is_base else _full_difference(c.reverse_kl_difference, 3),
            f"{c.mean_response_tokens:.1f}",
        ))  # fmt: skip
    columns = ("method", "runs", "Rouge-L [95 %]", "s.e. runs", "difference", "reverse KL [95 %]", "s.e. runs", "difference", "tokens")
    return Table(group.title(set_name), columns, rows)


def _full_difference(difference: tuple[float, Interval], digits: int) -> str:
    mean, (low, high) = difference
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]" + ("" if low <= 0 <= high else " *")


def difference_plot(methods: list[Method], baseline: str) -> Figure:
    """Each method's difference from its base: Rouge-L on the left, reverse KL on the right, one row of panels for each group and set."""
    panel_rows = [(group, set_name) for group in comparison_groups(methods, baseline) for set_name in group.base.scores]
    heights = [len(group.methods) - 1 for group, _ in panel_rows]
    figure = Figure(figsize=(11, sum(0.9 + 0.3 * height for height in heights)), layout="constrained")
    panels = figure.subplots(len(panel_rows), 2, squeeze=False, sharey="row", height_ratios=[2 + height for height in heights])
    for (rouge_axes, kl_axes), (group, set_name) in zip(panels, panel_rows, strict=True):
        base, others = group.base, [method for method in group.methods if method is not group.base]
        comparisons = [compare(method, base, set_name) for method in others]
        rouge_axes.set_title(group.title(set_name), fontsize=10, loc="left")
        _draw_differences(rouge_axes, [comparison.rouge_l_difference for comparison in comparisons], better=1)
        _draw_differences(kl_axes, [comparison.reverse_kl_difference for comparison in comparisons], better=-1)
        rouge_axes.set_yticks(range(len(others)), [method.label for method in others])
        rouge_axes.invert_yaxis()
    rouge_axes.set_xlabel("Rouge-L (right is better)")
    kl_axes.set_xlabel("reverse KL, nats per token (left is better)")
    return figure


def _draw_differences(axes: Axes, differences: Iterable[tuple[float, Interval]], *, better: int) -> None:
    """better: the sign of an improvement. Green: better; orange: worse; gray: the interval holds 0."""
    axes.axvline(0, color="#999999", linewidth=1)
    for row, (mean, (low, high)) in enumerate(differences):
        outcome = 0 if low <= 0 <= high else better * np.sign(mean)
        color = {1: "#009E73", -1: "#D55E00", 0: "#7f7f7f"}[int(outcome)]
        axes.errorbar(mean, row, xerr=[[mean - low], [high - mean]], fmt="o", color=color, capsize=3, markersize=5, elinewidth=1.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
