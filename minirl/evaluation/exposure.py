"""ExAccErr (exposure bias): excess KL on the student's prefixes over the teacher's prefixes, in percent.

With F(s) = KL(teacher || student) at state s and f_Z(t) its mean over prompts and samples from Z of 1[t <= T(y)] F(s_t):

    R(l) = sum_{t <= l} f_student(t)     l eps(l) = sum_{t <= l} f_teacher(t)     ExAccErr(l) = 100 (R(l) - l eps(l)) / (l eps(l))

Position 1 is the prompt alone, the same for both, so ExAccErr(1) = 0. Three forms treat finished responses differently:

    zero       a finished response counts as 0 and stays in the mean
    drop       a finished response leaves the mean: the sum is divided by the number of responses alive
    reference  what the reference code computes: a mean over the samples of each prompt with 0.001 added to their number, then over
               prompts; it leaves out the position of the prompt alone. The value depends on how samples are grouped by prompt.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from minirl.evaluation.intervals import bootstrap_counts
from minirl.evaluation.positions import TokenGrid

Form = Literal["zero", "drop", "reference"]
FORMS: tuple[Form, ...] = ("zero", "drop", "reference")
MIN_TEACHER_SUM = 1e-8  # nats: the ratio is undefined where the teacher's accumulated KL is smaller


@dataclass(frozen=True)
class ExposureCurve:
    """percent[l - 1] is ExAccErr(l), None where it is undefined; low, high: 95 % of a paired bootstrap over prompts."""

    percent: list[float | None]
    low: list[float | None]
    high: list[float | None]


def exposure_curve(on_student: TokenGrid, on_teacher: TokenGrid, form: Form, *, resamples: int = 1000, seed: int = 0) -> ExposureCurve:
    """Grids of forward KL on the samples of the student and of the teacher, for the same prompts; widths and sample counts may differ."""
    prompts = on_student.lengths.shape[1]
    weights = np.concatenate([np.ones((1, prompts)), bootstrap_counts(prompts, resamples, seed)])
    width = max(on_student.values.shape[-1], on_teacher.values.shape[-1])
    student_sums, teacher_sums = (_accumulated_kl(grid, form, weights, width) for grid in (on_student, on_teacher))
    with np.errstate(divide="ignore", invalid="ignore"):
        curves = np.where(teacher_sums < MIN_TEACHER_SUM, np.nan, 100 * (student_sums - teacher_sums) / teacher_sums)
    low, high = _interval(curves[1:])
    return ExposureCurve(_none_for_nan(curves[0]), _none_for_nan(low), _none_for_nan(high))


def _accumulated_kl(grid: TokenGrid, form: Form, weights: np.ndarray, width: int) -> np.ndarray:
    """sum_{t <= l} f(t) for each weighting of the prompts: [draws, width]; NaN from the first position where the divisor is 0."""
    padding = [(0, 0), (0, width - grid.values.shape[-1])]
    sums, alive = np.pad(grid.values.sum(0), padding), np.pad(grid.alive.sum(0), padding)
    if form == "zero":
        numerator, denominator = sums, np.full(sums.shape, len(grid.values))
    elif form == "drop":
        numerator, denominator = sums, alive
    else:
        numerator, denominator = (sums / (alive + 1e-3))[:, 1:], np.ones(sums[:, 1:].shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        return ((weights @ numerator) / (weights @ denominator)).cumsum(-1)


def _interval(curves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds at each position, over the draws where the curve is defined there; NaN where no draw is."""
    defined = ~np.isnan(curves).all(0)
    bounds = np.full((2, curves.shape[1]), np.nan)
    bounds[:, defined] = np.nanquantile(curves[:, defined], [0.025, 0.975], axis=0)
    return bounds[0], bounds[1]


def _none_for_nan(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
