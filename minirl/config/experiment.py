"""The YAML of an experiment: what all runs share, and the rows that differ."""

from typing import Any, Self

from pydantic import Field, model_validator

from minirl.config.evaluation import EvaluateConfig
from minirl.config.strict import StrictModel


class RowConfig(StrictModel):
    """One method. settings: what it changes of `run`, to any depth; about: what the table calls it; changes: the row that this one is
    a change of, at the same seeds, and is compared with too.
    """

    about: str
    seeds: list[int] = Field(min_length=1)
    changes: str | None = None
    settings: dict[str, Any]


class ExperimentConfig(StrictModel):
    """run: the settings of every run but `directory` and `seed`. common: the stages that are done once, whose teacher and student every
    row starts from. evaluate: how all students are judged. rows: the methods; `baseline` names the one that the others are compared
    with, prompt by prompt.
    """

    directory: str
    run: dict[str, Any]
    common: dict[str, Any]
    common_seed: int = 10
    evaluate: EvaluateConfig = EvaluateConfig()
    baseline: str
    rows: dict[str, RowConfig]

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        if self.baseline not in self.rows:
            raise ValueError(f"baseline: {self.baseline} is none of the rows {', '.join(self.rows)}")
        for name, row in self.rows.items():
            if row.changes is not None and not set(row.seeds) <= set(self.rows[row.changes].seeds if row.changes in self.rows else ()):
                raise ValueError(f"rows.{name}.changes: {row.changes} is no row with the seeds {row.seeds}; name one that has them")
        for key in ("directory", "seed", "stages"):
            if key in self.run:
                raise ValueError(f"run.{key} is set by the experiment itself; leave it out")
        return self
