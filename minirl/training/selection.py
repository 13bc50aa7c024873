"""Selection of the best student of an on-policy stage: by one validation metric, between equal ones by reverse KL."""

from dataclasses import dataclass

from minirl.config.stages import SelectBy

HIGHER_IS_BETTER = {"rouge_l": True, "reverse_kl": False, "validation_loss": False}
NAMES = {"rouge_l": "Rouge-L", "reverse_kl": "the reverse KL", "validation_loss": "the validation loss"}


@dataclass
class Selection:
    """The best validation so far, as the checkpoint holds it. The metrics are those of the best student, None where not measured.

    validations: how many there were. selection_varied: the metric that selects was not the same at all of them.
    """

    best_rouge_l: float | None = None
    best_reverse_kl: float | None = None
    best_validation_loss: float | None = None
    best_iteration: int | None = None
    validations: int = 0
    selection_varied: bool = False

    def add_validation(self, iteration: int, metrics: dict[str, float], select_by: SelectBy) -> bool:
        """Counts a validation. Returns whether its student is the best so far. metrics: by the keys of `HIGHER_IS_BETTER`.

        Validations that are equal in the metric are compared by reverse KL, so that a metric that never varies selects by reverse KL.
        """
        best = getattr(self, f"best_{select_by}")
        self.selection_varied |= best is not None and metrics[select_by] != best
        self.validations += 1
        if self.best_iteration is not None and not self._is_better(metrics, select_by):
            return False
        self.best_iteration = iteration
        for name in HIGHER_IS_BETTER:
            setattr(self, f"best_{name}", metrics.get(name))
        return True

    def selection_warning(self, select_by: SelectBy) -> str | None:
        """One sentence if the metric has been the same at every one of several validations."""
        if self.selection_varied or self.validations < 2:
            return None
        value, key = getattr(self, f"best_{select_by}"), "select_by: reverse_kl"
        fallback = "the earliest student stays the best" if select_by == "reverse_kl" else (
            f"the lowest reverse KL selects instead (iteration {self.best_iteration}); set {key} to always select so"
        )  # fmt: skip
        return f"{NAMES[select_by]} was {value:.4g} at all {self.validations} validations and cannot select a student: {fallback}"

    def _is_better(self, metrics: dict[str, float], select_by: SelectBy) -> bool:
        for name in (select_by, "reverse_kl"):
            best = getattr(self, f"best_{name}")
            if best is None:  # an older checkpoint, or one with another `select_by`
                return True
            if metrics[name] != best:
                return (metrics[name] > best) == HIGHER_IS_BETTER[name]
        return False
