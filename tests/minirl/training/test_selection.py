"""Which validation is the best: by the chosen metric, equal ones by reverse KL, and a warning where the metric never varies."""

import json

import pytest

from minirl.training.on_policy_loop import OnPolicyProgress
from minirl.training.selection import Selection

KL = [0.9, 0.4, 0.6]


def select(select_by: str, selection: Selection | None = None, **metrics: list[float]) -> Selection:
    """The selection after one validation for each value, at iterations 10, 20, ..."""
    selection = selection or Selection()
    for number, values in enumerate(zip(*metrics.values(), strict=True)):
        selection.add_validation(10 * (number + 1), dict(zip(metrics, values, strict=True)), select_by)
    return selection


@pytest.mark.parametrize(
    ("select_by", "metrics", "best"),
    [
        ("rouge_l", {"rouge_l": [3.0, 1.0, 5.0], "reverse_kl": KL}, 30),
        ("rouge_l", {"rouge_l": [5.0, 1.0, 3.0], "reverse_kl": KL}, 10),
        ("rouge_l", {"rouge_l": [5.0, 1.0, 5.0], "reverse_kl": KL}, 30),  # equal: the lower reverse KL
        ("reverse_kl", {"rouge_l": [5.0, 1.0, 3.0], "reverse_kl": KL}, 20),
        ("reverse_kl", {"reverse_kl": KL}, 20),  # no references
        ("validation_loss", {"rouge_l": [5.0, 1.0, 3.0], "reverse_kl": KL, "validation_loss": [2.0, 3.0, 1.0]}, 30),
    ],
)
def test_the_best_student_is_that_of_the_chosen_metric(select_by, metrics, best):
    selection = select(select_by, **metrics)
    assert (selection.best_iteration, selection.selection_warning(select_by)) == (best, None)


def test_a_metric_that_never_varies_selects_by_reverse_kl_and_warns():
    """Rouge-L of a student that answers in symbols, say. The first validation must not stay the best for ever."""
    selection = select("rouge_l", rouge_l=[0.0, 0.0, 0.0], reverse_kl=KL)
    assert selection.best_iteration == 20 and selection.best_reverse_kl == 0.4
    warning = selection.selection_warning("rouge_l")
    assert "Rouge-L was 0 at all 3 validations" in warning and "iteration 20" in warning and "select_by: reverse_kl" in warning
    loss = select("validation_loss", validation_loss=[2.0, 2.0, 2.0], reverse_kl=KL)
    assert loss.best_iteration == 20 and "the validation loss was 2" in loss.selection_warning("validation_loss")


def test_one_validation_is_no_reason_for_a_warning():
    assert select("rouge_l", rouge_l=[0.0], reverse_kl=[1.0]).selection_warning("rouge_l") is None


def test_reverse_kl_that_never_varies_keeps_the_earliest_student():
    selection = select("reverse_kl", reverse_kl=[0.5, 0.5])
    assert selection.best_iteration == 10 and "earliest student" in selection.selection_warning("reverse_kl")


def test_only_a_better_student_is_reported_as_the_best():
    selection, verdicts = Selection(), []
    for number, score in enumerate([1.0, 3.0, 2.0, 3.0]):
        verdicts.append(selection.add_validation(number, {"rouge_l": score, "reverse_kl": 0.1}, "rouge_l"))
    assert verdicts == [True, True, False, False]


def test_a_checkpoint_from_before_reverse_kl_was_measured_goes_on():
    """The keys of such a checkpoint. Its best student has no reverse KL, so an equal Rouge-L replaces it and a lower one does not."""
    older = {
        "iteration": 20, "updates": 40, "target_tokens": 9, "weight_version": 21, "best_rouge_l": 4.0, "best_iteration": 10, "cursors": {},
    }  # fmt: skip
    assert select("rouge_l", OnPolicyProgress(**older), rouge_l=[3.0], reverse_kl=[0.1]).best_rouge_l == 4.0
    assert select("rouge_l", OnPolicyProgress(**older), rouge_l=[4.0], reverse_kl=[0.3]).best_reverse_kl == 0.3
    progress = select("rouge_l", OnPolicyProgress(**older), rouge_l=[5.0], reverse_kl=[0.2])
    assert OnPolicyProgress(**json.loads(json.dumps(vars(progress)))) == progress
