"""What the turns of all contestants say: medians, ratios within rounds, the time to a given reverse KL; as tables and as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from minirl.tables import Table
from tests.benchmarks.contestants import Turn

COLORS = {"ours": "#3b75af", "trl": "#e8963a", "plain": "#777777"}


@dataclass(frozen=True)
class Figures:
    """One contestant. turns: the timed ones, in order. peak_bytes: PSS of its processes together. idle_cpu: cores used out of turn."""

    turns: list[Turn]
    peak_bytes: int
    idle_cpu: float

    @property
    def seconds(self) -> float:
        """Of the median update."""
        return median(turn.seconds for turn in self.turns)

    @property
    def samples_per_second(self) -> float:
        return median(self.per_second("samples"))

    @property
    def tokens_per_second(self) -> float:
        """Response tokens."""
        return median(self.per_second("response_tokens"))

    def per_second(self, what: str) -> list[float]:
        return [getattr(turn.worked, what) / turn.seconds for turn in self.turns]


@dataclass(frozen=True)
class Point:
    """A student on its way. seconds: of training until here, exports not counted; reverse_kl: held-out, nats per token."""

    updates: int
    seconds: float
    reverse_kl: float


def ratios(ours: Figures, other: Figures, what: str) -> list[float]:
    """How many times as fast we were, by `what` per second, in each round: both turns of a round met the same machine."""
    return [mine / theirs for mine, theirs in zip(ours.per_second(what), other.per_second(what), strict=True)]


def seconds_until(curve: Sequence[Point], target: float) -> float | None:
    """When the reverse KL first came down to `target`, between two points by a straight line; None: never."""
    for before, after in zip(curve, curve[1:], strict=False):
        if after.reverse_kl <= target < before.reverse_kl:
            share = (before.reverse_kl - target) / (before.reverse_kl - after.reverse_kl)
            return before.seconds + share * (after.seconds - before.seconds)
    return None


def common_target(curves: dict[str, list[Point]]) -> float:
    """The lowest reverse KL that every contestant reached."""
    return max(min(point.reverse_kl for point in curve) for curve in curves.values())


def speed_table(figures: dict[str, Figures]) -> Table:
    rows = []
    for name, found in figures.items():
        seconds = [turn.seconds for turn in found.turns]
        rows.append(
            (
                name,
                f"{found.samples_per_second:.2f}",
                f"{found.tokens_per_second:.0f}",
                f"{found.seconds:.2f}",
                f"{min(seconds):.2f}-{max(seconds):.2f}",
                f"{median(turn.worked.response_tokens for turn in found.turns):.0f}",
                f"{found.peak_bytes / 1e9:.2f}",
                f"{found.idle_cpu:.2f}",
            )
        )
    columns = ("", "samples/s", "tok/s", "s/update", "range", "tokens", "peak GB", "idle CPU")
    title = "Medians of the timed updates; tokens of responses, memory and cores used out of turn by all processes of each"
    return Table(title, columns, rows)


def ratio_table(figures: dict[str, Figures]) -> Table:
    rows = []
    for name in figures:
        if name != "ours":
            samples, tokens = (ratios(figures["ours"], figures[name], what) for what in ("samples", "response_tokens"))
            memory = figures["ours"].peak_bytes / figures[name].peak_bytes
            spread = f"{min(samples):.2f}-{max(samples):.2f}"
            rows.append((f"ours / {name}", f"{median(samples):.2f}", spread, f"{median(tokens):.2f}", f"{memory:.2f}"))
    return Table("Ratios, medians over rounds", ("", "samples/s", "range", "response tok/s", "peak memory"), rows)


def quality_table(curves: dict[str, list[Point]], target: float) -> Table:
    """How each came down, and when it reached the target."""
    rows = []
    for name, curve in curves.items():
        reached = seconds_until(curve, target)
        values = ", ".join(f"{point.reverse_kl:.3f}" for point in curve)
        rows.append((name, values, "never" if reached is None else f"{reached:.0f}"))
    counts = ", ".join(str(point.updates) for point in next(iter(curves.values())))
    return Table("Held-out reverse KL, nats per token", ("", f"after {counts} updates", f"seconds to {target:.3f}"), rows)


def picture(curves: dict[str, list[Point]], target: float, title: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        seconds, values = [point.seconds for point in curve], [point.reverse_kl for point in curve]
        axes.plot(seconds, values, marker="o", color=COLORS[name], label=name)
    axes.axhline(target, color="#bbbbbb", linewidth=1, linestyle="--")
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("held-out reverse KL, nats per token")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
