"""ExAccErr: what a student's own prefixes cost it, in percent of what it costs on the teacher's prefixes (exposure bias).

With F(s) = KL(teacher || student) at state s and f_Z(t) its mean over prompts and samples from Z of 1[t <= T(y)] F(s_t):

    R(l) = sum_{t <= l} f_student(t)     l eps(l) = sum_{t <= l} f_teacher(t)     ExAccErr(l) = 100 (R(l) - l eps(l)) / (l eps(l))

Place 1 is the prompt alone, the same for both, so ExAccErr(1) = 0. Three forms say what a finished response counts:

    zero       nothing, but it stays in the mean
    drop       it leaves the mean: divided by the share that is alive
    reference  what the reference code computes: a mean over the samples of each prompt with 0.001 added to their number, then over
               prompts; the place of the prompt alone is left out. It depends on how samples are grouped by prompt.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from minirl.evaluation.intervals import prompt_draws
from minirl.evaluation.positions import TokenGrid

Form = Literal["zero", "drop", "reference"]
FORMS: tuple[Form, ...] = ("zero", "drop", "reference")
NOTHING = 1e-8  # nats: below it the ratio says nothing


@dataclass(frozen=True)
class ExposureCurve:
    """percent[l - 1] is ExAccErr(l), None where it is not defined; low, high: 95 % of a paired bootstrap over prompts."""

    percent: list[float | None]
    low: list[float | None]
    high: list[float | None]


def exposure_curve(on_student: TokenGrid, on_teacher: TokenGrid, form: Form, *, resamples: int = 1000, seed: int = 0) -> ExposureCurve:
    """Grids of forward KL on the samples of the student and of the teacher, for the same prompts; widths and samples may differ."""
    prompts = on_student.lengths.shape[1]
    weights = np.concatenate([np.ones((1, prompts)), prompt_draws(prompts, resamples, seed)])
    width = max(on_student.values.shape[-1], on_teacher.values.shape[-1])
    own, teachers = (_accumulated(grid, form, weights, width) for grid in (on_student, on_teacher))
    with np.errstate(divide="ignore", invalid="ignore"):
        curves = np.where(teachers < NOTHING, np.nan, 100 * (own - teachers) / teachers)
    low, high = _interval(curves[1:])
    return ExposureCurve(_listed(curves[0]), _listed(low), _listed(high))


def _accumulated(grid: TokenGrid, form: Form, weights: np.ndarray, width: int) -> np.ndarray:
    """sum_{t <= l} f(t) of each choice of prompts: [draws, width]; NaN from where none is alive that the form divides by."""
    room = [(0, 0), (0, width - grid.values.shape[-1])]
    sums, alive = np.pad(grid.values.sum(0), room), np.pad(grid.alive.sum(0), room)
    if form == "zero":
        above, below = sums, np.full(sums.shape, len(grid.values))
    elif form == "drop":
        above, below = sums, alive
    else:
        above, below = (sums / (alive + 1e-3))[:, 1:], np.ones(sums[:, 1:].shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        return ((weights @ above) / (weights @ below)).cumsum(-1)


def _interval(curves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each place, over the draws where it is defined; NaN where there are none."""
    defined = ~np.isnan(curves).all(0)
    bounds = np.full((2, curves.shape[1]), np.nan)
    bounds[:, defined] = np.nanquantile(curves[:, defined], [0.025, 0.975], axis=0)
    return bounds[0], bounds[1]


def _listed(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
