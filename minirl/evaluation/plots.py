"""The pictures of an evaluation: Rouge-L by set and by length of the gold response, ExAccErr by length, KL by position."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from minirl.evaluation.figures import GOLD_WORDS, ModelFigures

TEACHER = "teacher"
GRAY = "#7f7f7f"
# Okabe and Ito's, which the colour-blind tell apart; the teacher is gray.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#B8A800")
STYLES = ("-", "--", ":", "-.")
INK = "#333333"
FEWEST_ALIVE = 0.05  # of the responses: what comes after is the chatter of a few
SMOOTHED = 5  # places that a curve of KL averages
MOST_BANDS = 4  # more would cover one another
FINISHED = {"zero": "finished responses count 0", "drop": "finished responses left out"}

BARS = {"elinewidth": 1, "capsize": 2, "ecolor": INK}
Models = dict[str, dict[str, ModelFigures]]  # by model, then by set


def draw_all(models: Models, directory: Path) -> list[Path]:
    """Write what there is something to show for; returns the files."""
    drawn = {
        "rouge_l.png": rouge_by_set(models),
        "rouge_l_by_length.png": rouge_by_gold_words(models),
        "kl_by_position.png": kl_by_position(models),
        "exposure_bias.png": exposure_bias(models),
    }
    files = []
    for name, figure in drawn.items():
        path = directory / name
        path.unlink(missing_ok=True)
        if figure is not None:
            figure.savefig(path, dpi=150)
            files.append(path)
    return files


def rouge_by_set(models: Models) -> Figure:
    """Bars with 95 % of a bootstrap over prompts."""
    sets = _sets(models)
    figure, (axes,) = _panels(1, width=_bar_width(len(sets), len(models)))
    _bars(axes, models, [f"{name}\n{_prompts(models, name)} prompts" for name in sets], lambda one: [one[name]["rouge_l"] for name in sets])
    axes.set_ylabel("Rouge-L")
    _legend(figure, axes)
    return figure


def rouge_by_gold_words(models: Models) -> Figure:
    sets = _sets(models)
    figure, panels = _panels(len(sets), width=_bar_width(len(GOLD_WORDS), len(models)))
    for axes, name in zip(panels, sets, strict=True):
        classes = next(iter(models.values()))[name]["rouge_l_by_gold_words"]
        labels = [f"{_words(row)}\n{row['prompts']} prompts" for row in classes]
        _bars(axes, models, labels, lambda one, name=name: [row["rouge_l"] for row in one[name]["rouge_l_by_gold_words"]])
        axes.set_ylabel(_of("Rouge-L", name, sets))
    panels[-1].set_xlabel("words of the gold response")
    _legend(figure, panels[0])
    return figure


def kl_by_position(models: Models) -> Figure | None:
    """Reverse and forward KL on each model's own samples, and below them the share of its responses that is still alive.

    Running means: of all tokens in five places.
    """
    students = {m: sets for m, sets in models.items() if m != TEACHER and all(one["kl_by_position"] for one in sets.values())}
    if not students:
        return None
    sets = _sets(students)
    figure = Figure(figsize=(9, 3.8 * len(sets) + 0.6), layout="constrained")
    rows = figure.subplots(2 * len(sets), 2, squeeze=False, sharex="col", height_ratios=[3, 1] * len(sets))
    titles = {"reverse": "KL(student ‖ teacher)", "forward": "KL(teacher ‖ student)"}
    for number, name in enumerate(sets):
        for column, kind in enumerate(titles):
            above, below = rows[2 * number][column], rows[2 * number + 1][column]
            for model, color, style in _styled(students, models):
                found = students[model][name]["kl_by_position"]
                share = np.array(found["alive"]) / found["alive"][0]
                shown = int((share >= FEWEST_ALIVE).sum())
                places = np.arange(1, len(share) + 1)
                above.plot(places[:shown], _running(found[kind], found["alive"])[:shown], color=color, linestyle=style, label=model)
                below.plot(places, share, color=color, linestyle=style)
            above.set_title(_of(titles[kind], name, sets), fontsize=10)
            above.set_ylim(bottom=0)
            below.set_ylim(0, 1.05)
            below.xaxis.set_major_locator(MaxNLocator(integer=True))
            _tidy(above, below)
        rows[2 * number][0].set_ylabel("nats at this place")
        rows[2 * number + 1][0].set_ylabel("alive")
    for axes in rows[-1]:
        axes.set_xlabel("place in the response (1: after the prompt alone)")
    _legend(figure, rows[0][0])
    return figure


def exposure_bias(models: Models) -> Figure | None:
    """ExAccErr in its two forms, since responses of another length than the teacher's move the first."""
    students = {model: sets for model, sets in models.items() if all(one["exposure_bias"] for one in sets.values())}
    if not students:
        return None
    sets = _sets(students)
    figure = Figure(figsize=(10, 3.2 * len(sets) + 0.8), layout="constrained")
    rows = figure.subplots(len(sets), 2, squeeze=False, sharex="row", sharey="row")
    for panels, name in zip(rows, sets, strict=True):
        for axes, (form, title) in zip(panels, FINISHED.items(), strict=True):
            curves = {model: sets[name]["exposure_bias"][form] for model, sets in students.items()}
            _curves(axes, [(curves[model], model, *look) for model, *look in _styled(students, models)])
            axes.set_title(title, fontsize=10)
        panels[0].set_ylabel(_of("ExAccErr (%)", name, sets))
    for axes in rows[-1]:
        axes.set_xlabel("length of the response")
    _legend(figure, rows[0][0])
    return figure


def _curves(axes: Axes, looks: list[tuple[ModelFigures, str, str, str]]) -> None:
    """(curve, model, color, style), with 95 % of a bootstrap: a band, or where bands would be too many a bar at the end."""
    for number, (curve, model, color, style) in enumerate(looks):
        percent, low, high = (np.array(curve[key], np.float64) for key in ("percent", "low", "high"))
        lengths = np.arange(1, len(percent) + 1)
        axes.plot(lengths, percent, color=color, linestyle=style, label=model)
        if len(looks) <= MOST_BANDS:
            axes.fill_between(lengths, low, high, color=color, alpha=0.15, linewidth=0)
        else:
            axes.vlines(lengths[-1] * (1.015 + 0.01 * number), low[-1], high[-1], color=color, linewidth=1.5)
    axes.axhline(0, color=GRAY, linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _tidy(axes)


def _bars(axes: Axes, models: Models, labels: list[str], estimates: Callable[[dict[str, ModelFigures]], list[ModelFigures | None]]) -> None:
    """A group of bars for each label, a bar for each model that has an estimate there."""
    width = 0.8 / len(models)
    for number, (model, color, _) in enumerate(_styled(models, models)):
        found = [(place, one) for place, one in enumerate(estimates(models[model])) if one is not None]
        means = np.array([one["mean"] for _, one in found])
        reach = np.array([[one["mean"] - one["low"] for _, one in found], [one["high"] - one["mean"] for _, one in found]])
        places = [place + (number - (len(models) - 1) / 2) * width for place, _ in found]
        axes.bar(places, means, 0.9 * width, color=color, label=model)
        axes.errorbar(places, means, reach.clip(min=0), fmt="none", **BARS)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlim(-0.6, len(labels) - 0.4)
    axes.set_ylim(bottom=0)
    _tidy(axes)


def _running(values: list[float], alive: list[int]) -> np.ndarray:
    window, alive = np.ones(min(SMOOTHED, len(alive))), np.array(alive)
    return np.convolve(np.array(values) * alive, window, "same") / np.convolve(alive, window, "same")


def _of(what: str, name: str, sets: list[str]) -> str:
    return what if len(sets) == 1 else f"{what}, {name}"


def _styled(shown: Models, models: Models) -> list[tuple[str, str, str]]:
    """(model, color, line style); a model looks the same in every picture."""
    students = [model for model in models if model != TEACHER]
    looks = {m: (COLORS[i % len(COLORS)], STYLES[i // len(COLORS) % len(STYLES)]) for i, m in enumerate(students)} | {TEACHER: (GRAY, "-")}
    return [(model, *looks[model]) for model in shown]


def _panels(count: int, width: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, 3.2 * count + 0.8), layout="constrained")
    return figure, list(figure.subplots(count, 1, squeeze=False)[:, 0])


def _bar_width(groups: int, models: int) -> float:
    return float(np.clip(1.5 + 0.3 * groups * (models + 1), 6.5, 14))


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 4), frameon=False, fontsize=9)


def _tidy(*panels: Axes) -> None:
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)


def _sets(models: Models) -> list[str]:
    return list(next(iter(models.values())))


def _prompts(models: Models, name: str) -> int:
    return next(iter(models.values()))[name]["prompts"]


def _words(row: ModelFigures) -> str:
    return f"{row['low']} or more" if row["high"] is None else f"{row['low']} to {row['high']}"
