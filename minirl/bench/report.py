"""The report of `minirl bench`: bench.json, tables (in the terminal and in Markdown) and one picture."""

from dataclasses import asdict
from pathlib import Path
from textwrap import wrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from minirl.bench.bottleneck import bottleneck
from minirl.bench.efficiency import ROLE_OF, BenchResult, Ratio, percent, rates_of, ratios
from minirl.files import write_json
from minirl.tables import Table

COLORS = {"rollout": "#3b75af", "teacher": "#e8963a", "learner": "#519d4f", "publish": "#8d69b8", "driver": "#777777", "idle": "#e4e4e4"}
Segment = tuple[str, str, float]  # of a bar: label, color, seconds
SAMPLED = {"plain": "student alone", "teacher_only": "teacher alone", "mixed": "mixed"}


def save(directory: Path, result: BenchResult, description: dict[str, str]) -> list[Path]:
    """Write bench.json, bench.md and bench.png; returns their paths. description: the run and the machine, a line for each key."""
    directory.mkdir(parents=True, exist_ok=True)
    files = [directory / f"bench.{kind}" for kind in ("json", "md", "png")]
    values = {
        "about": description,
        "bottleneck": bottleneck(result),
        "devices": {role: asdict(rates_of(result, role)) for role in result.roles},
        "ratios": {name: asdict(ratio) | {"met": ratio.met} for name, ratio in ratios(result).items()},
        "measurements": asdict(result),
    }
    write_json(files[0], values)
    files[1].write_text(markdown(result, description))
    picture(result, files[2])
    return files


def tables(result: BenchResult) -> list[Table]:
    return [
        _roles(result),
        _devices(result),
        _sampling(result),
        _verbs(result),
        _ratios(ratios(result)),
        _transport(result),
        _memory(result),
    ]


def markdown(result: BenchResult, description: dict[str, str]) -> str:
    parts = ["# minirl bench", *(f"- {name}: {value}" for name, value in description.items()), "", f"**{bottleneck(result)}**", ""]
    parts += [table.markdown() for table in tables(result)]
    return "\n".join([*parts, "![an iteration, by role and by verb](bench.png)", ""])


def picture(result: BenchResult, path: Path) -> None:
    """Stacked bars over the seconds of the median iteration: the roles alone, the verbs in the loop, each role's busy and idle time."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    bars = _bars(result)
    longest = max(sum(seconds for _, _, seconds in segments) for segments in bars.values())
    for row, segments in enumerate(bars.values()):
        _draw_bar(axes, row, segments, longest)
    axes.set_xlim(0, 1.22 * longest)
    axes.set_yticks(range(len(bars)), list(bars))
    axes.invert_yaxis()
    axes.set_xlabel("seconds of one iteration (medians)")
    axes.spines[["top", "right"]].set_visible(False)
    names = {"rollout": "rollout (sample)", "teacher": "teacher (score)", "learner": "learner (credit, update)"}
    handles = [Patch(color=color, label=names.get(name, name)) for name, color in COLORS.items()]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.45, -0.15), ncols=6, frameon=False, columnspacing=1.4)
    figure.suptitle("\n".join(wrap(f"efficiency {result.efficiency():.2f}; {bottleneck(result)}", 110)), fontsize=10)
    figure.savefig(path, dpi=150)


def _draw_bar(axes: Axes, row: int, segments: list[Segment], longest: float) -> None:
    """One bar. The labels of segments that are too narrow for theirs are written at the end of the bar."""
    start, narrow = 0.0, []
    for label, color, seconds in segments:
        axes.barh(row, seconds, left=start, color=COLORS[color], edgecolor="white", height=0.62)
        if seconds > 0.09 * longest:
            ink = "#333333" if color == "idle" else "white"
            axes.text(start + seconds / 2, row, f"{label}\n{_seconds(seconds)}", ha="center", va="center", color=ink, fontsize=9)
        elif seconds > 0.001 * longest:
            narrow.append(f"{label} {_seconds(seconds)}")
        start += seconds
    axes.text(start + 0.01 * longest, row, "\n".join(narrow), ha="left", va="center", color="#333333", fontsize=8)


def _bars(result: BenchResult) -> dict[str, list[Segment]]:
    iteration = result.loop("time/iteration")
    alone = [(role, role, result.alone_seconds(role)) for role in result.roles]
    loop = [(verb, ROLE_OF.get(verb, verb), max(0.0, seconds)) for verb, seconds in result.verb_seconds().items()]
    bars = {"each role alone": [*alone, ("publish", "publish", result.limits["publish"].seconds)], "verbs in the loop": loop}
    for role in result.roles:
        idle = result.idle(role) * iteration
        bars[f"{role} in the loop"] = [("busy", role, iteration - idle), ("idle", "idle", idle)]
    return bars


def _roles(result: BenchResult) -> Table:
    labels = {} if "teacher" in result.roles else {"rollout": "rollout, with the teacher's scores"}
    rows = [
        (
            labels.get(role, role),
            _rate(result.alone[role].rate),
            _rate(result.loop_rate(role)),
            _seconds(result.alone_seconds(role)),
            _seconds(result.loop(f"{role}/busy_seconds")),
            percent(result.idle(role)),
        )
        for role in result.roles
    ]
    return Table("Roles, for one iteration", ("role", "tok/s alone", "in loop", "busy alone", "in loop", "idle"), rows)


def _devices(result: BenchResult) -> Table:
    rows = []
    for role in result.roles:
        rates = rates_of(result, role)
        tokens = _rate(rates.tokens_per_second), _rate(rates.loop_tokens_per_second)
        rows.append((role, str(rates.devices), *tokens, f"{rates.matmul_flops / 1e12:.3g}", percent(rates.mfu), percent(rates.loop_mfu)))
    columns = ("role", "devices", "tok/s alone", "in loop", "matmul TFLOP/s", "MFU alone", "in loop")
    return Table("Each device: tokens/s, and model FLOPs over those of bare matrix products (MFU)", columns, rows)


def _sampling(result: BenchResult) -> Table:
    rows = [(label, _rate(result.alone[name].rate), _seconds(result.alone[name].seconds)) for name, label in SAMPLED.items()]
    return Table("Sampling equally long responses", ("from", "tok/s", "time"), rows)


def _verbs(result: BenchResult) -> Table:
    iteration = result.loop("time/iteration")
    rows = [(verb, _seconds(seconds), percent(seconds / iteration, 1)) for verb, seconds in result.verb_seconds().items()]
    return Table("What the driver waited for", ("verb", "time", "share"), [*rows, ("iteration", _seconds(iteration), "100 %")])


def _ratios(ratios_by_name: dict[str, Ratio]) -> Table:
    rows = []
    for name, ratio in ratios_by_name.items():
        goal = "" if ratio.goal is None else f"{'<' if ratio.at_most else '>='} {ratio.goal:g}"
        rows.append((f"{name}: {ratio.meaning}", f"{ratio.value:.3g}", goal, {None: "", True: "met", False: "missed"}[ratio.met]))
    return Table("Ratios to limits", ("ratio", "value", "goal", ""), rows)


def _transport(result: BenchResult) -> Table:
    alone = result.limits["publish"].seconds
    rows = [
        ("weights, one publish alone", _bytes(result.publish_bytes), _seconds(alone), f"{result.publish_bytes / alone / 1e9:.3g} GB/s"),
        ("a plain copy of as much", _bytes(result.publish_bytes), *_copy(result)),
        ("weights, each iteration", _bytes(result.loop("publish/bytes")), _seconds(result.loop("time/publish")), ""),
    ]
    scored = "teacher" not in result.roles
    rows.append(("rollouts" + scored * " with scores" + ", each iteration", _bytes(result.loop("rollout/payload_bytes")), "", ""))
    if not scored:
        rows.append(("teacher scores, each iteration", _bytes(result.loop("teacher/payload_bytes")), "", ""))
    return Table("Bytes moved", ("what", "size", "time", "speed"), rows)


def _copy(result: BenchResult) -> tuple[str, str]:
    seconds = result.limits["publish"].least
    return _seconds(seconds), f"{result.publish_bytes / seconds / 1e9:.3g} GB/s"


def _memory(result: BenchResult) -> Table:
    rows = [
        (f"{role} {worker}" if len(peaks) > 1 else role, _bytes(peak))
        for role, peaks in result.memory.items()
        for worker, peak in enumerate(peaks)
    ]
    return Table("Peak memory of each process", ("process", "peak"), rows)


def _seconds(seconds: float) -> str:
    for unit, size in (("s", 1), ("ms", 1e-3)):
        if seconds >= 0.1 * size:
            return f"{seconds / size:.{0 if seconds >= 100 * size else 1 if seconds >= 10 * size else 2}f} {unit}"
    return f"{1e6 * seconds:.1f} µs"


def _rate(tokens_per_second: float) -> str:
    return f"{tokens_per_second:,.0f}"


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
