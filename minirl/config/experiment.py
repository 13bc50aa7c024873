"""Config sections of `minirl experiment`: the settings that all runs share, and the rows that differ from them."""

from typing import Any, Self

from pydantic import Field, model_validator

from minirl.config.evaluation import EvaluateConfig
from minirl.config.strict import PathText, StrictModel


class RowConfig(StrictModel):
    """One method: one row of the tables, trained once for each of its seeds."""

    about: str  # the method's name in tables and plots
    seeds: list[int] = Field(min_length=1)  # training seeds; each makes one run
    # The row that this one changes in one respect. The two are compared with each other too, at the seeds of this row, which that row must
    # have. `null`: compared with the baseline alone.
    changes: str | None = None
    settings: dict[str, Any]  # the keys that differ from `run`, at any depth, the row's `stages` among them


class ExperimentConfig(StrictModel):
    """Many methods, trained from the same teacher and the same student, evaluated together, and compared prompt by prompt."""

    directory: PathText  # where the experiment writes its runs and its report
    run: dict[str, Any]  # the config that all runs share, without `directory`, `seed` and `stages`
    # The `stages` that run once; every row starts from the teacher and the student that they leave.
    common: dict[str, Any] | list[dict[str, Any]]
    common_seed: int = 10  # the seed of these stages
    evaluate: EvaluateConfig = EvaluateConfig()  # how all students are evaluated
    baseline: str  # the name of the row that every other row is compared with
    rows: dict[str, RowConfig]  # the methods by name, each a section like `RowConfig`

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        if self.baseline not in self.rows:
            raise ValueError(f"baseline: {self.baseline} is none of the rows {', '.join(self.rows)}; name one of them")
        for name, row in self.rows.items():
            if row.changes is not None and not set(row.seeds) <= set(self.rows[row.changes].seeds if row.changes in self.rows else ()):
                raise ValueError(f"rows.{name}.changes: {row.changes} is no row with the seeds {row.seeds}; name a row that has them")
        for key in ("directory", "seed", "stages"):
            if key in self.run:
                raise ValueError(f"run.{key} is set by the experiment itself; leave it out")
        return self
