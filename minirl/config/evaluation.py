"""What is measured of trained students, and on which prompts."""

import re
from typing import Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from minirl.config.strict import StrictModel


class EvaluationSetConfig(StrictModel):
    """One named set of held-out prompts."""

    source: str | None = None  # as data.train; null: the run's own test split
    prompts: PositiveInt | None = None  # the first so many; null: as stages.evaluate.prompts
    min_gold_words: NonNegativeInt = 0  # leaves out prompts whose (first) gold response is shorter


class EvaluateConfig(StrictModel):
    """The closing table and all that is measured beside it: Rouge-L, exact divergences, diversity, on held-out prompts."""

    seeds: list[int] = Field([10, 20, 30], min_length=1)  # each samples one response a prompt
    prompts: PositiveInt = 128  # of each set, at most
    sets: dict[str, EvaluationSetConfig] = Field({"test": EvaluationSetConfig()}, min_length=1)  # the table shows the first
    no_repeat_ngram: NonNegativeInt = 0  # no n-gram twice in prompt and response, 6 in the reference; KL is not measured then
    exposure_bias: bool = False  # ExAccErr too: one more pass over the teacher's samples for each model
    top_k: PositiveInt = 10  # the likeliest tokens whose overlap with the teacher's is measured

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        for name in self.sets:
            if not re.fullmatch(r"[\w-]+", name):
                raise ValueError(f"sets: {name!r} names a set and columns of files; use letters, digits, - and _ alone")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {self.seeds} has a seed twice, which would count the same responses twice")
        if self.no_repeat_ngram and self.exposure_bias:
            raise ValueError(
                "exposure_bias compares the models' own distributions, and with no_repeat_ngram something else is sampled; set one of them"
            )
        return self
