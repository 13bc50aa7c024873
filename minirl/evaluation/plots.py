"""Plots of an evaluation: Rouge-L by set and by gold length, ExAccErr by length, KL by position."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from minirl.evaluation.figures import GOLD_WORDS, ModelFigures

TEACHER = "teacher"
GRAY = "#7f7f7f"
# Based on the palette of Okabe and Ito, which colour-blind readers can tell apart; the teacher is gray.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#B8A800")
STYLES = ("-", "--", ":", "-.")
DARK_GRAY = "#333333"
MIN_ALIVE_SHARE = 0.05  # of the responses: later positions average too few responses and are noise
SMOOTHED_POSITIONS = 5  # positions in the running mean of a KL curve
MAX_BANDS = 4  # more bands would cover one another
EXPOSURE_TITLES = {"zero": "finished responses count 0", "drop": "finished responses left out"}

ERROR_BARS = {"elinewidth": 1, "capsize": 2, "ecolor": DARK_GRAY}
Models = dict[str, dict[str, ModelFigures]]  # by model, then by set


def draw_all(models: Models, directory: Path) -> list[Path]:
    """Draw every plot that has data, and delete stale files of the others; returns the files written."""
    plots = {
        "rouge_l.png": rouge_by_set(models),
        "rouge_l_by_length.png": rouge_by_gold_words(models),
        "kl_by_position.png": kl_by_position(models),
        "exposure_bias.png": exposure_bias(models),
    }
    files = []
    for name, figure in plots.items():
        path = directory / name
        path.unlink(missing_ok=True)
        if figure is not None:
            figure.savefig(path, dpi=150)
            files.append(path)
    return files


def rouge_by_set(models: Models) -> Figure:
    """Bars with 95 % intervals of a bootstrap over prompts."""
    sets = _set_names(models)
    figure, (axes,) = _panels(1, width=_bar_figure_width(len(sets), len(models)))
    labels = [f"{name}\n{_prompt_count(models, name)} prompts" for name in sets]
    _bars(axes, models, labels, lambda figures_by_set: [figures_by_set[name]["rouge_l"] for name in sets])
    axes.set_ylabel("Rouge-L")
    _legend(figure, axes)
    return figure


def rouge_by_gold_words(models: Models) -> Figure:
    """Bars for each length class of the gold response, one panel for each set."""
    sets = _set_names(models)
    figure, panels = _panels(len(sets), width=_bar_figure_width(len(GOLD_WORDS), len(models)))
    for axes, name in zip(panels, sets, strict=True):
        classes = next(iter(models.values()))[name]["rouge_l_by_gold_words"]
        labels = [f"{_word_range(row)}\n{row['prompts']} prompts" for row in classes]
        _bars(axes, models, labels, lambda by_set, name=name: [row["rouge_l"] for row in by_set[name]["rouge_l_by_gold_words"]])
        axes.set_ylabel(_label("Rouge-L", name, sets))
    panels[-1].set_xlabel("words of the gold response")
    _legend(figure, panels[0])
    return figure


def kl_by_position(models: Models) -> Figure | None:
    """Reverse and forward KL on each model's own samples; the panels below show the share of its responses that is still alive.

    The KL curves are running means over all tokens at five adjacent positions.
    """
    students = {m: sets for m, sets in models.items() if m != TEACHER and all(figures["kl_by_position"] for figures in sets.values())}
    if not students:
        return None
    sets = _set_names(students)
    figure = Figure(figsize=(9, 3.8 * len(sets) + 0.6), layout="constrained")
    rows = figure.subplots(2 * len(sets), 2, squeeze=False, sharex="col", height_ratios=[3, 1] * len(sets))
    titles = {"reverse": "KL(student ‖ teacher)", "forward": "KL(teacher ‖ student)"}
    for number, name in enumerate(sets):
        for column, kind in enumerate(titles):
            kl_axes, alive_axes = rows[2 * number][column], rows[2 * number + 1][column]
            for model, color, style in _styled(students, models):
                curves = students[model][name]["kl_by_position"]
                share = np.array(curves["alive"]) / curves["alive"][0]
                shown = int((share >= MIN_ALIVE_SHARE).sum())
                positions = np.arange(1, len(share) + 1)
                means = _running_mean(curves[kind], curves["alive"])
                kl_axes.plot(positions[:shown], means[:shown], color=color, linestyle=style, label=model)
                alive_axes.plot(positions, share, color=color, linestyle=style)
            kl_axes.set_title(_label(titles[kind], name, sets), fontsize=10)
            kl_axes.set_ylim(bottom=0)
            alive_axes.set_ylim(0, 1.05)
            alive_axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            _tidy(kl_axes, alive_axes)
        rows[2 * number][0].set_ylabel("nats at this position")
        rows[2 * number + 1][0].set_ylabel("share alive")
    for axes in rows[-1]:
        axes.set_xlabel("position in the response (1: after the prompt alone)")
    _legend(figure, rows[0][0])
    return figure


def exposure_bias(models: Models) -> Figure | None:
    """ExAccErr in the forms "zero" and "drop": responses of other lengths than the teacher's move the first, so compare both."""
    students = {model: sets for model, sets in models.items() if all(figures["exposure_bias"] for figures in sets.values())}
    if not students:
        return None
    sets = _set_names(students)
    figure = Figure(figsize=(10, 3.2 * len(sets) + 0.8), layout="constrained")
    rows = figure.subplots(len(sets), 2, squeeze=False, sharex="row", sharey="row")
    for panels, name in zip(rows, sets, strict=True):
        for axes, (form, title) in zip(panels, EXPOSURE_TITLES.items(), strict=True):
            curves = {model: sets[name]["exposure_bias"][form] for model, sets in students.items()}
            _curves(axes, [(curves[model], model, color, style) for model, color, style in _styled(students, models)])
            axes.set_title(title, fontsize=10)
        panels[0].set_ylabel(_label("ExAccErr (%)", name, sets))
    for axes in rows[-1]:
        axes.set_xlabel("length of the response")
    _legend(figure, rows[0][0])
    return figure


def _curves(axes: Axes, styled_curves: list[tuple[ModelFigures, str, str, str]]) -> None:
    """styled_curves: (curve, model, color, style). The 95 % interval is a band; with more than MAX_BANDS curves, a bar at the end."""
    for number, (curve, model, color, style) in enumerate(styled_curves):
        percent, low, high = (np.array(curve[key], np.float64) for key in ("percent", "low", "high"))
        lengths = np.arange(1, len(percent) + 1)
        axes.plot(lengths, percent, color=color, linestyle=style, label=model)
        if len(styled_curves) <= MAX_BANDS:
            axes.fill_between(lengths, low, high, color=color, alpha=0.15, linewidth=0)
        else:
            axes.vlines(lengths[-1] * (1.015 + 0.01 * number), low[-1], high[-1], color=color, linewidth=1.5)
    axes.axhline(0, color=GRAY, linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _tidy(axes)


def _bars(axes: Axes, models: Models, labels: list[str], estimates: Callable[[dict[str, ModelFigures]], list[ModelFigures | None]]) -> None:
    """A group of bars for each label, with a bar for each model that has an estimate there."""
    width = 0.8 / len(models)
    for number, (model, color, _) in enumerate(_styled(models, models)):
        present = [(group, estimate) for group, estimate in enumerate(estimates(models[model])) if estimate is not None]
        means = np.array([e["mean"] for _, e in present])
        reach = np.array([[e["mean"] - e["low"] for _, e in present], [e["high"] - e["mean"] for _, e in present]])
        x = [group + (number - (len(models) - 1) / 2) * width for group, _ in present]
        axes.bar(x, means, 0.9 * width, color=color, label=model)
        axes.errorbar(x, means, reach.clip(min=0), fmt="none", **ERROR_BARS)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlim(-0.6, len(labels) - 0.4)
    axes.set_ylim(bottom=0)
    _tidy(axes)


def _running_mean(values: list[float], alive: list[int]) -> np.ndarray:
    """Mean over SMOOTHED_POSITIONS positions, each weighted by the number of responses alive there."""
    window, alive = np.ones(min(SMOOTHED_POSITIONS, len(alive))), np.array(alive)
    return np.convolve(np.array(values) * alive, window, "same") / np.convolve(alive, window, "same")


def _label(quantity: str, set_name: str, sets: list[str]) -> str:
    return quantity if len(sets) == 1 else f"{quantity}, {set_name}"


def _styled(shown: Models, models: Models) -> list[tuple[str, str, str]]:
    """(model, color, line style) of each model shown; a model looks the same in every plot."""
    students = [model for model in models if model != TEACHER]
    looks = {m: (COLORS[i % len(COLORS)], STYLES[i // len(COLORS) % len(STYLES)]) for i, m in enumerate(students)} | {TEACHER: (GRAY, "-")}
    return [(model, *looks[model]) for model in shown]


def _panels(count: int, width: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, 3.2 * count + 0.8), layout="constrained")
    return figure, list(figure.subplots(count, 1, squeeze=False)[:, 0])


def _bar_figure_width(groups: int, models: int) -> float:
    """Width of a figure of bars, in inches."""
    return float(np.clip(1.5 + 0.3 * groups * (models + 1), 6.5, 14))


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 4), frameon=False, fontsize=9)


def _tidy(*panels: Axes) -> None:
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)


def _set_names(models: Models) -> list[str]:
    return list(next(iter(models.values())))


def _prompt_count(models: Models, set_name: str) -> int:
    return next(iter(models.values()))[set_name]["prompts"]


def _word_range(row: ModelFigures) -> str:
    return f"{row['low']} or more" if row["high"] is None else f"{row['low']} to {row['high']}"
