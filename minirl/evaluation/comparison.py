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
# Field of `Comparison`, label of its axis, and the sign of an improvement.
PLOTTED = (("rouge_l", "Rouge-L (right is better)", 1), ("reverse_kl", "reverse KL, nats per token (left is better)", -1))
Interval = tuple[float, float]


@dataclass(frozen=True)
class RunScores:
    """Scores of one run on one set, each [sampling seeds, prompts].

    lengths: tokens of each response. kl_sums: its reverse KL in nats; None where n-grams were blocked, because KL is not measured there.
    """

    rouge_l: np.ndarray
    lengths: np.ndarray
    kl_sums: np.ndarray | None = None

    @classmethod
    def read(cls, file: Path) -> "RunScores":
        """From an evaluation's `<set>/<model>.npz`."""
        with np.load(file) as arrays:
            rouge_l, lengths = arrays["rouge_l"].astype(np.float64), arrays["lengths"]
            if "own/reverse_kl" not in arrays:
                return cls(rouge_l, lengths)
            ends = np.cumsum(lengths.ravel())
            sums = np.add.reduceat(arrays["own/reverse_kl"].astype(np.float64), np.concatenate([[0], ends[:-1]]))
            return cls(rouge_l, lengths, sums.reshape(lengths.shape))

    @classmethod
    def concatenated(cls, runs: list["RunScores"]) -> "RunScores":
        """The samples of all runs, one run after another: [runs x sampling seeds, prompts]."""
        columns = ([getattr(run, field) for run in runs] for field in cls.__dataclass_fields__)
        return cls(*(None if any(values is None for values in column) else np.concatenate(column) for column in columns))


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
        return RunScores.concatenated(self.scores[set_name])

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
class MetricComparison:
    """One metric of a method. difference: the method minus the baseline, with its interval. run_standard_error: over training runs, None
    for one run.
    """

    estimate: Estimate
    run_standard_error: float | None
    difference: tuple[float, Interval]


@dataclass(frozen=True)
class Comparison:
    """One method on one set. Lower reverse KL is better; None where it was not measured."""

    runs: int
    rouge_l: MetricComparison
    reverse_kl: MetricComparison | None
    mean_response_tokens: float


def compare(method: Method, baseline: Method, set_name: str) -> Comparison:
    """Both methods must have the prompts of the set in the same order."""
    scores, baseline_scores, runs = method.all_scores(set_name), baseline.all_scores(set_name), method.scores[set_name]
    difference = estimate((scores.rouge_l.mean(0) - baseline_scores.rouge_l.mean(0))[None])
    rouge_l = MetricComparison(
        estimate(scores.rouge_l),
        mean_and_standard_error([run.rouge_l.mean() for run in runs])[1],
        (difference.mean, (difference.low, difference.high)),
    )
    reverse_kl = None
    if scores.kl_sums is not None and baseline_scores.kl_sums is not None:
        reverse_kl = MetricComparison(
            pooled_estimate(scores.kl_sums, scores.lengths),
            mean_and_standard_error([run.kl_sums.sum() / run.lengths.sum() for run in runs])[1],
            _kl_difference(scores, baseline_scores),
        )
    return Comparison(len(runs), rouge_l, reverse_kl, float(scores.lengths.mean()))


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
    rows, names = [], []
    for method in group.methods:
        metrics, cells = _metrics(compare(method, group.base, set_name), "rev. KL"), [method.label]
        for _, metric, digits in metrics:
            cells += [f"{metric.estimate.mean:.{digits}f}", "" if method is group.base else _brief_difference(metric.difference, digits)]
        rows.append(tuple(cells))
        names = [name for name, *_ in metrics]
    return Table(group.title(set_name), ("method", *(column for name in names for column in (name, "diff."))), rows)


def _full_table(group: ComparisonGroup, set_name: str) -> Table:
    rows, names = [], []
    for method in group.methods:
        comparison = compare(method, group.base, set_name)
        metrics, cells = _metrics(comparison, "reverse KL"), [method.label, str(comparison.runs)]
        for _, metric, digits in metrics:
            mean, error = metric.estimate, metric.run_standard_error
            cells += [
                f"{mean.mean:.{digits}f} [{mean.low:.{digits}f}, {mean.high:.{digits}f}]",
                "" if error is None else f"{error:.{digits}f}",
                "" if method is group.base else _full_difference(metric.difference, digits),
            ]
        rows.append((*cells, f"{comparison.mean_response_tokens:.1f}"))
        names = [name for name, *_ in metrics]
    metric_columns = (column for name in names for column in (f"{name} [95 %]", "s.e. runs", "difference"))
    return Table(group.title(set_name), ("method", "runs", *metric_columns, "tokens"), rows)


def _metrics(comparison: Comparison, kl_name: str) -> list[tuple[str, MetricComparison, int]]:
    """(column name, metric, decimals in tables) of each metric that was measured."""
    metrics = [("Rouge-L", comparison.rouge_l, 2), (kl_name, comparison.reverse_kl, 3)]
    return [(name, metric, digits) for name, metric, digits in metrics if metric is not None]


def _brief_difference(difference: tuple[float, Interval], digits: int) -> str:
    mean, (low, high) = difference
    return f"{mean:+.{digits}f}" + (" " if low <= 0 <= high else "*")


def _full_difference(difference: tuple[float, Interval], digits: int) -> str:
    mean, (low, high) = difference
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]" + ("" if low <= 0 <= high else " *")


def difference_plot(methods: list[Method], baseline: str) -> Figure:
    """Each method's difference from its base: Rouge-L on the left, reverse KL, if measured, on the right; a row for each group and set."""
    panel_rows = [(group, set_name) for group in comparison_groups(methods, baseline) for set_name in group.base.scores]
    heights = [len(group.methods) - 1 for group, _ in panel_rows]
    has_kl = all(method.all_scores(set_name).kl_sums is not None for group, set_name in panel_rows for method in group.methods)
    kinds = PLOTTED if has_kl else PLOTTED[:1]
    figure = Figure(figsize=(11, sum(0.9 + 0.3 * height for height in heights)), layout="constrained")
    panels = figure.subplots(len(panel_rows), len(kinds), squeeze=False, sharey="row", height_ratios=[2 + height for height in heights])
    for row, (group, set_name) in zip(panels, panel_rows, strict=True):
        base, others = group.base, [method for method in group.methods if method is not group.base]
        comparisons = [compare(method, base, set_name) for method in others]
        row[0].set_title(group.title(set_name), fontsize=10, loc="left")
        for axes, (metric, _, better) in zip(row, kinds, strict=True):
            _draw_differences(axes, [getattr(comparison, metric).difference for comparison in comparisons], better=better)
        row[0].set_yticks(range(len(others)), [method.label for method in others])
        row[0].invert_yaxis()
    for axes, (_, label, _) in zip(row, kinds, strict=True):
        axes.set_xlabel(label)
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
