"""What an experiment shows: one row a method, each against the baseline, prompt by prompt.

A prompt's score is its mean over training seeds and sampling seeds, and intervals are 95 % of a bootstrap over prompts, so they say how
far another set of prompts would move a figure. `between_seeds` says how far another training seed would: the standard error over the
runs of a row.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minirl.evaluation.estimates import Estimate, estimate, mean_and_standard_error, pooled, prompt_draws
from minirl.report import Table

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
    """One row: its runs, in the order of their seeds. sets: [set][run]; the token counts and seconds are means over the runs."""

    name: str
    about: str
    sets: dict[str, list[Scores]]
    target_tokens: float = 0.0
    sampled_tokens: float = 0.0
    training_seconds: float = 0.0

    def joined(self, name: str) -> Scores:
        """All runs' samples, one after another: [runs x sampling seeds, prompts]."""
        return Scores(*(np.concatenate([getattr(run, field) for run in self.sets[name]]) for field in Scores.__dataclass_fields__))


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
    """One a set, and what each method was given."""
    base = next(method for method in methods if method.name == baseline)
    found = [_of_set(methods, base, name) for name in base.sets]
    work = [
        (m.about, f"{m.target_tokens:,.0f}", f"{m.sampled_tokens:,.0f}", f"{m.training_seconds:.0f} s")
        for m in methods
    ]  # fmt: skip
    return [*found, Table("Work of a run", ("method", "tokens with gradient", "sampled", "training"), work)]


def brief(methods: list[Method], baseline: str) -> list[Table]:
    """For a terminal of 80 columns: means, and differences from the baseline, starred where their interval leaves 0."""
    base, found = next(method for method in methods if method.name == baseline), []
    for name in base.sets:
        compared = [(method, compare(method, base, name)) for method in methods]
        rows = [
            (
                m.about, f"{c.rouge_l.mean:.2f}", _star(c.rouge_l_gain, 2, m is base),
                f"{c.reverse_kl.mean:.3f}", _star(c.reverse_kl_gain, 3, m is base),
            )
            for m, c in compared
        ]  # fmt: skip
        found.append(Table(f"Set {name}, differences from {base.about}", ("method", "Rouge-L", "diff.", "rev. KL", "diff."), rows))
    return found


def _star(gain: tuple[float, Interval], digits: int, is_baseline: bool) -> str:
    mean, (low, high) = gain
    return "" if is_baseline else f"{mean:+.{digits}f}" + (" " if low <= 0 <= high else "*")


def _of_set(methods: list[Method], base: Method, name: str) -> Table:
    rows = []
    for method in methods:
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
    against = f"against {base.about}"
    columns = ("method", "runs", "Rouge-L [95 %]", "s.e. runs", against, "reverse KL [95 %]", "s.e. runs", against, "tokens")
    return Table(f"Set {name}", columns, rows)


def _gain(gain: tuple[float, Interval], digits: int) -> str:
    mean, (low, high) = gain
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]" + ("" if low <= 0 <= high else " *")


def picture(methods: list[Method], baseline: str) -> Figure:
    """Each method's difference from the baseline, Rouge-L and reverse KL side by side, one row of panels a set."""
    base = next(method for method in methods if method.name == baseline)
    others, sets = [m for m in methods if m is not base], list(base.sets)
    figure = Figure(figsize=(11, 1.2 + 0.34 * len(others) * len(sets)), layout="constrained")
    panels = figure.subplots(len(sets), 2, squeeze=False, sharey="row")
    for (left, right), name in zip(panels, sets, strict=True):
        found = [compare(method, base, name) for method in others]
        _gains(left, [one.rouge_l_gain for one in found], f"Rouge-L on {name}, against {base.about} (right is better)", better=1)
        _gains(right, [one.reverse_kl_gain for one in found], f"reverse KL on {name}, nats a token (left is better)", better=-1)
        left.set_yticks(range(len(others)), [method.about for method in others])
        left.invert_yaxis()
    return figure


def _gains(axes: Axes, gains: Iterable[tuple[float, Interval]], title: str, *, better: int) -> None:
    axes.axvline(0, color="#999999", linewidth=1)
    for row, (mean, (low, high)) in enumerate(gains):
        decided = 0 if low <= 0 <= high else better * np.sign(mean)
        color = {1: "#009E73", -1: "#D55E00", 0: "#7f7f7f"}[int(decided)]
        axes.errorbar(mean, row, xerr=[[mean - low], [high - mean]], fmt="o", color=color, capsize=3, markersize=5, elinewidth=1.5)
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
