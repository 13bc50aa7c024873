"""ExAccErr and KL by position: by hand, and against loops over the definitions, including the reference code's."""

import numpy as np
import pytest

from minirl.evaluation.exposure import FORMS, exposure_curve
from minirl.evaluation.positions import means_by_position, token_grid


def rows(*samples):
    """Arrays [samples][prompts] from nested lists."""
    return [[np.array(row, np.float64) for row in prompts] for prompts in samples]


def drawn(seed: int, samples: int, prompts: int, longest: int):
    draw = np.random.default_rng(seed)
    return [[draw.exponential(size=draw.integers(1, longest + 1)) for _ in range(prompts)] for _ in range(samples)]


# --- by hand: two prompts, one sample each. Student: 1, 3 | 1. Teacher: 1, 1 | 1, 1. ---

STUDENT, TEACHER = rows([[1, 3], [1]]), rows([[1, 1], [1, 1]])


def test_finished_responses_count_nothing_by_hand():
    """f_student = 1, 1.5; f_teacher = 1, 1; R = 1, 2.5; l eps = 1, 2; 100 * 0.5 / 2 = 25 %."""
    assert exposure_curve(token_grid(STUDENT), token_grid(TEACHER), "zero").percent == pytest.approx([0.0, 25.0])


def test_finished_responses_leave_the_mean_by_hand():
    """f_student(2) = 3, divided by the one response alive: R = 1, 4; 100 * 2 / 2 = 100 %."""
    assert exposure_curve(token_grid(STUDENT), token_grid(TEACHER), "drop").percent == pytest.approx([0.0, 100.0])


def test_the_reference_form_by_hand():
    """The position of the prompt alone is left out: R = (3 / 1.001 + 0) / 2, l eps = 1 / 1.001: 50 %."""
    assert exposure_curve(token_grid(STUDENT), token_grid(TEACHER), "reference").percent == pytest.approx([50.0])


def test_a_teacher_without_kl_gives_no_number():
    exact = rows([[0.0, 0.0]])
    curve = exposure_curve(token_grid(rows([[0.0, 1.0]])), token_grid(exact), "zero")
    assert curve.percent == curve.low == curve.high == [None, None]
    almost = exposure_curve(token_grid(rows([[2e-8]])), token_grid(rows([[2e-8]])), "zero")
    assert almost.percent == pytest.approx([0.0])


def test_beyond_the_teachers_longest_response_only_the_form_zero_is_defined():
    longer, shorter = token_grid(rows([[1, 1, 1]])), token_grid(rows([[1, 1]]))
    assert exposure_curve(longer, shorter, "zero").percent == pytest.approx([0.0, 0.0, 50.0])
    assert exposure_curve(longer, shorter, "drop").percent == [0.0, 0.0, None]


# --- against loops ---


def loop(student, teacher, form: str, length: int) -> float:
    """The definition, one state at a time."""

    def mean_at(samples, t: int) -> float:
        alive = [row for prompts in samples for row in prompts if t <= len(row)]
        every = sum(len(prompts) for prompts in samples)
        total = sum(row[t - 1] for row in alive)
        return total / (every if form == "zero" else len(alive))

    student_sum = sum(mean_at(student, t) for t in range(1, length + 1))
    teacher_sum = sum(mean_at(teacher, t) for t in range(1, length + 1))
    return 100 * (student_sum - teacher_sum) / teacher_sum


def reference_loop(student, teacher, length: int) -> float:
    """The reference script: for each prompt a masked mean over its samples, with 1e-3 added to the divisor, accumulated; then the mean."""

    def accumulated(samples) -> float:
        curves = []
        for prompt in range(len(samples[0])):
            total = 0.0
            for t in range(2, length + 2):  # the script slices the logits from the prompt's length on
                values = [prompts[prompt][t - 1] for prompts in samples if t <= len(prompts[prompt])]
                total += sum(values) / (len(values) + 1e-3)
            curves.append(total)
        return sum(curves) / len(curves)

    return 100 * (accumulated(student) - accumulated(teacher)) / accumulated(teacher)


@pytest.mark.parametrize("form", FORMS)
def test_curves_equal_the_loops(form):
    student, teacher = drawn(1, 3, 7, 9), drawn(2, 2, 7, 9)
    curve = exposure_curve(token_grid(student), token_grid(teacher), form).percent
    lengths = range(1, 9 if form == "reference" else 10)
    expected = [
        reference_loop(student, teacher, length) if form == "reference" else loop(student, teacher, form, length) for length in lengths
    ]
    assert curve == pytest.approx(expected)


@pytest.mark.parametrize("form", ["zero", "drop"])
def test_the_value_does_not_depend_on_how_samples_are_grouped_by_prompt(form):
    """Ten samples of one prompt and one sample of each of ten prompts give the same curve, except in the reference form."""
    student, teacher = drawn(3, 1, 10, 8), drawn(4, 1, 10, 8)

    def one_prompt(samples):
        return [[row] for row in samples[0]]

    def curve(form, *grouped):
        return exposure_curve(*(token_grid(g) for g in grouped), form).percent

    assert curve(form, student, teacher) == pytest.approx(curve(form, one_prompt(student), one_prompt(teacher)))
    assert curve("reference", student, teacher) != pytest.approx(curve("reference", one_prompt(student), one_prompt(teacher)), rel=1e-2)


def test_the_bootstrap_is_paired_over_prompts():
    """Prompts differ a lot in KL, but the student's sum is always 1.5 times the teacher's at length 2: 50 % whatever prompts are drawn."""
    teacher = rows([[1.0, 1.0], [100.0, 100.0], [0.01, 0.01]])
    student = rows([[1.0, 2.0], [100.0, 200.0], [0.01, 0.02]])
    curve = exposure_curve(token_grid(student), token_grid(teacher), "zero")
    assert curve.low == pytest.approx(curve.percent) and curve.high == pytest.approx(curve.percent)
    assert curve.percent[1] == pytest.approx(50.0)


def test_the_bootstrap_spreads_where_prompts_differ():
    teacher, student = rows([[1.0, 1.0]] * 2), rows([[1.0, 1.0], [1.0, 3.0]])
    curve = exposure_curve(token_grid(student), token_grid(teacher), "zero", resamples=500)
    assert (curve.low[1], curve.percent[1], curve.high[1]) == pytest.approx((0.0, 50.0, 100.0))


def test_means_by_position_with_the_number_alive():
    means, alive = means_by_position(token_grid(rows([[1, 5], [3]], [[2], [2, 7, 9]])))
    assert (means, alive) == ([2.0, 6.0, 9.0], [4, 2, 1])
