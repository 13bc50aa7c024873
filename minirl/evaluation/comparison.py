"""What an experiment shows: one row a method, each against the baseline, prompt by prompt.

A prompt's score is its mean over training seeds and sampling seeds, and intervals are 95 % of a bootstrap over prompts, so they say how
far another set of prompts would move a figure. `between_seeds` says how far another training seed would: the standard error over the
runs of a row.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minirl.evaluation.intervals import Estimate, estimate, mean_and_standard_error, pooled, prompt_draws
from minirl.tables import Table

RESAMPLES = 2000
Interval = tuple[float, float]


@dataclass(frozen=True)
class Scores:
    """Of one run on one set of prompts, each [sampling seeds, prompts]. kl_sums: reverse KL of each response, nats; lengths: its tokens."""

    rouge_l: np.ndarray
    kl_sums: np.ndarray
    lengths: np.ndarray

    @classmethod
    def read(cls, file: Path) -> "Scores":
        """An evaluation's `<set>/<model>.npz`."""
        with np.load(file) as found:
            ends = np.cumsum(found["lengths"].ravel())
            sums = np.add.reduceat(found["own/reverse_kl"].astype(np.float64), np.concatenate([[0], ends[:-1]]))
            return cls(found["rouge_l"].astype(np.float64), sums.reshape(found["lengths"].shape), found["lengths"])


@dataclass(frozen=True)
class Method:
    """One row: its runs, in the order of `seeds`. sets: [set][run]; changes: the row that this one is a change of, if it is one;
    the token counts and seconds are means over the runs.
    """

    name: str
    about: str
    seeds: list[int]
    sets: dict[str, list[Scores]]
    changes: str | None = None
    target_tokens: float = 0.0
    sampled_tokens: float = 0.0
    training_seconds: float = 0.0

    def joined(self, name: str) -> Scores:
        """All runs' samples, one after another: [runs x sampling seeds, prompts]."""
        return Scores(*(np.concatenate([getattr(run, field) for run in self.sets[name]]) for field in Scores.__dataclass_fields__))

    def at(self, seeds: list[int]) -> "Method":
        """With the runs of these seeds alone."""
        places = [self.seeds.index(seed) for seed in seeds]
        return replace(self, seeds=seeds, sets={name: [runs[place] for place in places] for name, runs in self.sets.items()})


@dataclass(frozen=True)
class ComparisonGroup:
    """Methods that are compared with one of them, the base."""

    base: Method
    methods: list[Method]
    note: str = ""

    def title(self, name: str) -> str:
        """Of what is said of the set `name`."""
        return f"Set {name}, against {self.base.about}{self.note}"


def comparison_groups(methods: list[Method], baseline: str) -> list[ComparisonGroup]:
    """All against the baseline; then the changes of each row against that row, at the training seeds that they have."""
    named = {method.name: method for method in methods}
    found, changed = [ComparisonGroup(named[baseline], methods)], {}
    for method in methods:
        if method.changes in named and set(method.seeds) <= set(named[method.changes].seeds):
            changed.setdefault((method.changes, *method.seeds), []).append(method)
    for (name, *seeds), group in changed.items():
        base = named[name].at(seeds)
        found.append(ComparisonGroup(base, [base, *group], f" at training seed {', '.join(map(str, seeds))}"))
    return found


@dataclass(frozen=True)
class Compared:
    """One method on one set. *_gain: the difference from the baseline with its interval; lower reverse KL is better."""

    runs: int
    rouge_l: Estimate
    rouge_l_between_seeds: float | None
    rouge_l_gain: tuple[float, Interval]
    reverse_kl: Estimate
    reverse_kl_between_seeds: float | None
    reverse_kl_gain: tuple[float, Interval]
    mean_response_tokens: float


def compare(method: Method, baseline: Method, name: str) -> Compared:
    """On the set `name`, whose prompts both have in one order."""
    ours, theirs, runs = method.joined(name), baseline.joined(name), method.sets[name]
    difference = estimate((ours.rouge_l.mean(0) - theirs.rouge_l.mean(0))[None])
    return Compared(
        runs=len(runs),
        rouge_l=estimate(ours.rouge_l),
        rouge_l_between_seeds=mean_and_standard_error([run.rouge_l.mean() for run in runs])[1],
        rouge_l_gain=(difference.mean, (difference.low, difference.high)),
        reverse_kl=pooled(ours.kl_sums, ours.lengths),
        reverse_kl_between_seeds=mean_and_standard_error([run.kl_sums.sum() / run.lengths.sum() for run in runs])[1],
        reverse_kl_gain=_kl_gain(ours, theirs),
        mean_response_tokens=float(ours.lengths.mean()),
    )


def _kl_gain(ours: Scores, theirs: Scores) -> tuple[float, Interval]:
    """The difference of the pooled means, and what the same draws of prompts make of it."""
    draws = prompt_draws(ours.lengths.shape[1], RESAMPLES, 0)
    means = [(draws @ one.kl_sums.sum(0)) / (draws @ one.lengths.sum(0)) for one in (ours, theirs)]
    low, high = np.quantile(means[0] - means[1], [0.025, 0.975])
    return float(ours.kl_sums.sum() / ours.lengths.sum() - theirs.kl_sums.sum() / theirs.lengths.sum()), (float(low), float(high))


def tables(methods: list[Method], baseline: str) -> list[Table]:
    """One a group and set, and what each method was given."""
    found = [_of_set(group, name) for group in comparison_groups(methods, baseline) for name in group.base.sets]
    work = [
        (m.about, f"{m.target_tokens:,.0f}", f"{m.sampled_tokens:,.0f}", f"{m.training_seconds:.0f} s")
        for m in methods
    ]  # fmt: skip
    return [*found, Table("Work of a run", ("method", "tokens with gradient", "sampled", "training"), work)]


def brief(methods: list[Method], baseline: str) -> list[Table]:
    """For a terminal of 80 columns: means, and differences from the baseline, starred where their interval leaves 0."""
    return [_brief(group, name) for group in comparison_groups(methods, baseline) for name in group.base.sets]


def _brief(group: ComparisonGroup, name: str) -> Table:
    rows, base = [], group.base
    for method in group.methods:
        c, same = compare(method, base, name), method is base
        rouge_l, reverse_kl = _star(c.rouge_l_gain, 2, same), _star(c.reverse_kl_gain, 3, same)
        rows.append((method.about, f"{c.rouge_l.mean:.2f}", rouge_l, f"{c.reverse_kl.mean:.3f}", reverse_kl))
    return Table(group.title(name), ("method", "Rouge-L", "diff.", "rev. KL", "diff."), rows)


def _star(gain: tuple[float, Interval], digits: int, is_baseline: bool) -> str:
    mean, (low, high) = gain
    return "" if is_baseline else f"{mean:+.{digits}f}" + (" " if low <= 0 <= high else "*")


def _of_set(group: ComparisonGroup, name: str) -> Table:
    rows, base = [], group.base
    for method in group.methods:
        c = compare(method, base, name)
        same = method is base
        rows.append((
            method.about,
            str(c.runs),
            f"{c.rouge_l.mean:.2f} [{c.rouge_l.low:.2f}, {c.rouge_l.high:.2f}]",
            "" if c.rouge_l_between_seeds is None else f"{c.rouge_l_between_seeds:.2f}",
            "" if same else _gain(c.rouge_l_gain, 2),
            f"{c.reverse_kl.mean:.3f} [{c.reverse_kl.low:.3f}, {c.reverse_kl.high:.3f}]",
            "" if c.reverse_kl_between_seeds is None else f"{c.reverse_kl_between_seeds:.3f}",
            "" if same else _gain(c.reverse_kl_gain, 3),
            f"{c.mean_response_tokens:.1f}",
        ))  # fmt: skip
    columns = ("method", "runs", "Rouge-L [95 %]", "s.e. runs", "difference", "reverse KL [95 %]", "s.e. runs", "difference", "tokens")
    return Table(group.title(name), columns, rows)


def _gain(gain: tuple[float, Interval], digits: int) -> str:
    mean, (low, high) = gain
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]" + ("" if low <= 0 <= high else " *")


def picture(methods: list[Method], baseline: str) -> Figure:
    """Each method's difference from its base, Rouge-L and reverse KL side by side, one row of panels a group and set."""
    rows = [(group, name) for group in comparison_groups(methods, baseline) for name in group.base.sets]
    heights = [len(group.methods) - 1 for group, _ in rows]
    figure = Figure(figsize=(11, sum(0.9 + 0.3 * height for height in heights)), layout="constrained")
    panels = figure.subplots(len(rows), 2, squeeze=False, sharey="row", height_ratios=[2 + height for height in heights])
    for (left, right), (group, name) in zip(panels, rows, strict=True):
        base, others = group.base, [method for method in group.methods if method is not group.base]
        found = [compare(method, base, name) for method in others]
        left.set_title(group.title(name), fontsize=10, loc="left")
        _gains(left, [one.rouge_l_gain for one in found], better=1)
        _gains(right, [one.reverse_kl_gain for one in found], better=-1)
        left.set_yticks(range(len(others)), [method.about for method in others])
        left.invert_yaxis()
    left.set_xlabel("Rouge-L (right is better)")
    right.set_xlabel("reverse KL, nats a token (left is better)")
    return figure


def _gains(axes: Axes, gains: Iterable[tuple[float, Interval]], *, better: int) -> None:
    axes.axvline(0, color="#999999", linewidth=1)
    for row, (mean, (low, high)) in enumerate(gains):
        decided = 0 if low <= 0 <= high else better * np.sign(mean)
        color = {1: "#009E73", -1: "#D55E00", 0: "#7f7f7f"}[int(decided)]
        axes.errorbar(mean, row, xerr=[[mean - low], [high - mean]], fmt="o", color=color, capsize=3, markersize=5, elinewidth=1.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
