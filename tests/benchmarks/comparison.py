"""Results of the side-by-side comparison: medians, ratios within rounds, time to a reverse KL."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from minirl.bench.efficiency import percent
from minirl.tables import Table
from tests.benchmarks.contestants import TimedUpdate
from tests.benchmarks.protocol import UpdateCounts

COLORS = {"ours": "#3b75af", "trl": "#e8963a", "plain": "#777777"}


@dataclass(frozen=True)
class ContestantResult:
    """Measurements of one contestant.

    turns: its timed updates, in order. peak_bytes: PSS of all its processes. idle_cpu: cores that it uses while another one computes.
    """

    turns: list[TimedUpdate]
    peak_bytes: int
    idle_cpu: float

    @property
    def seconds(self) -> float:
        """Seconds of the median update."""
        return median(turn.seconds for turn in self.turns)

    @property
    def samples_per_second(self) -> float:
        return median(self.per_second("samples"))

    @property
    def tokens_per_second(self) -> float:
        """Response tokens per second."""
        return median(self.per_second("response_tokens"))

    def per_second(self, count: str) -> list[float]:
        """A count per second, for each update. count: a field of `UpdateCounts`."""
        return [getattr(update.worked, count) / update.seconds for update in self.turns]


@dataclass(frozen=True)
class Point:
    """A student after some updates. seconds: its training time, without exports. reverse_kl: held-out, nats per token."""

    updates: int
    seconds: float
    reverse_kl: float


def ratios(ours: ContestantResult, other: ContestantResult, count: str) -> list[float]:
    """The speed of minillm-ray over the other's, by `count` per second, in each round.

    Both updates of a round ran within the same minutes, so that a change in the machine's speed affects both.
    """
    return [our_rate / other_rate for our_rate, other_rate in zip(ours.per_second(count), other.per_second(count), strict=True)]


def seconds_until(curve: Sequence[Point], target: float) -> float | None:
    """Seconds until the reverse KL first reached `target`, interpolated linearly between two points; None: never."""
    for before, after in zip(curve, curve[1:], strict=False):
        if after.reverse_kl <= target < before.reverse_kl:
            share = (before.reverse_kl - target) / (before.reverse_kl - after.reverse_kl)
            return before.seconds + share * (after.seconds - before.seconds)
    return None


def common_target(curves: dict[str, list[Point]]) -> float:
    """The lowest reverse KL that every contestant reached."""
    return max(min(point.reverse_kl for point in curve) for curve in curves.values())


def speed_table(results: dict[str, ContestantResult]) -> Table:
    rows = []
    for name, result in results.items():
        seconds = [update.seconds for update in result.turns]
        rows.append(
            (
                name,
                f"{result.samples_per_second:.2f}",
                f"{result.tokens_per_second:.0f}",
                f"{result.seconds:.2f}",
                f"{min(seconds):.2f}-{max(seconds):.2f}",
                f"{median(update.worked.response_tokens for update in result.turns):.0f}",
                f"{result.peak_bytes / 1e9:.2f}",
                f"{result.idle_cpu:.2f}",
            )
        )
    columns = ("", "samples/s", "tok/s", "s/update", "range", "tokens", "peak GB", "idle CPU")
    title = "Medians of the timed updates; response tokens, memory of all processes, and cores used while another contestant computes"
    return Table(title, columns, rows)


def ratio_table(results: dict[str, ContestantResult]) -> Table:
    rows = []
    for name in results:
        if name != "ours":
            samples, tokens = (ratios(results["ours"], results[name], count) for count in ("samples", "response_tokens"))
            memory = results["ours"].peak_bytes / results[name].peak_bytes
            spread = f"{min(samples):.2f}-{max(samples):.2f}"
            rows.append((f"ours / {name}", f"{median(samples):.2f}", spread, f"{median(tokens):.2f}", f"{memory:.2f}"))
    return Table("Ratios, medians over rounds", ("", "samples/s", "range", "response tok/s", "peak memory"), rows)


def overview_table(reports: dict[tuple[str, str], dict]) -> Table:
    """All parts of a comparison in one table. reports: the contents of side_by_side.json, by pair and dtype.

    The fixed memory is the peak with the pair `smallest`, whose models take 1 MB: what the processes need before they hold a model.
    """
    rows = []
    for (pair, dtype), report in reports.items():
        fixed = reports.get(("smallest", dtype), {"figures": {}})["figures"]
        results = {name: read_result(figures) for name, figures in report["figures"].items()}
        for name, result in results.items():
            ratio = median(ratios(results["ours"], result, "samples")) if "ours" in results else None
            curve = report["curves"].get(name)
            rows.append(
                (
                    f"{pair}, {dtype}: {name}",
                    f"{result.seconds:.2f}",
                    "" if ratio is None or name == "ours" else f"{ratio:.2f}",
                    f"{result.peak_bytes / 1e9:.2f}",
                    percent(fixed[name]["peak_bytes"] / result.peak_bytes) if name in fixed else "",
                    f"{curve[-1]['reverse_kl']:.3f} after {curve[-1]['updates']}" if curve else "",
                )
            )
    columns = ("", "s/update", "ours / it, samples/s", "peak GB", "of it fixed", "reverse KL")
    return Table("All parts", columns, rows)


def read_result(figures: dict) -> ContestantResult:
    """A result as `dataclasses.asdict` left it."""
    turns = [TimedUpdate(turn["seconds"], UpdateCounts(**turn["worked"])) for turn in figures["turns"]]
    return ContestantResult(turns, figures["peak_bytes"], figures["idle_cpu"])


def quality_table(curves: dict[str, list[Point]], target: float) -> Table:
    """The reverse KL of each contestant's students, and the seconds until it reached the target."""
    rows = []
    for name, curve in curves.items():
        seconds = seconds_until(curve, target)
        values = ", ".join(f"{point.reverse_kl:.3f}" for point in curve)
        rows.append((name, values, "never" if seconds is None else f"{seconds:.0f}"))
    counts = ", ".join(str(point.updates) for point in next(iter(curves.values())))
    return Table("Held-out reverse KL, nats per token", ("", f"after {counts} updates", f"seconds to {target:.3f}"), rows)


def picture(curves: dict[str, list[Point]], target: float, title: str, path: Path) -> None:
    """Plot the curves and the target, and write the picture to `path`."""
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
