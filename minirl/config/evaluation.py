"""Config sections of the stage `evaluate`: which figures are measured, and on which sets of prompts."""

import re
from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from minirl.config.strict import PathText, StrictModel

RougeTokenizer = Literal["any_script", "paper"]


class EvaluationSetConfig(StrictModel):
    """One named set of held-out prompts."""

    source: PathText | None = None  # a source of records, as in `data.train`; `null`: the run's own test split
    prompts: PositiveInt | None = None  # how many prompts are used, the first ones; `null`: as in `stages.evaluate.prompts`
    # Leaves out prompts whose first gold response has fewer words; in scripts without spaces, such as Chinese or Thai, fewer characters.
    min_gold_words: NonNegativeInt = 0


class EvaluateConfig(StrictModel):
    """The evaluation at the end of a run: Rouge-L, exact divergences and diversity on held-out prompts, for every model of the run."""

    seeds: list[int] = Field([10, 20, 30], min_length=1)  # sampling seeds, all different: one response of each model a prompt for each
    prompts: PositiveInt = 128  # the most prompts that are used of each set
    # The sets by name, each a section like `EvaluationSetConfig`. A name consists of letters, digits, `-` and `_`. The closing table shows
    # the first set.
    sets: dict[str, EvaluationSetConfig] = Field({"test": EvaluationSetConfig()}, min_length=1)
    # Forbids that an n-gram of this many tokens occurs twice in prompt and response; 0: off. The reference generates with 6. KL is not
    # measured on such samples.
    no_repeat_ngram: NonNegativeInt = 0
    # How Rouge-L divides text. `any_script`: words, or characters in scripts without spaces, such as Chinese, Japanese, Thai and Khmer.
    # `paper`: the reference code's tokenizer, for which only ASCII letters and digits count. They agree on ASCII text.
    rouge_tokenizer: RougeTokenizer = "any_script"
    # Compares each model's greedy answers with the teacher's (Rouge-L, exact matches, identical starts), for one more response a prompt.
    # Several teachers have no common answers, so this is left out there.
    greedy_agreement: bool = True
    exposure_bias: bool = False  # measures ExAccErr (exposure bias) too, with one more pass over the teacher's samples for each model
    top_k: PositiveInt = 10  # how many of the most probable tokens are compared with the teacher's

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        for name in self.sets:
            if not re.fullmatch(r"[\w-]+", name):
                raise ValueError(f"sets: {name!r} becomes part of file names and column names; use letters, digits, - and _ alone")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {self.seeds} has a seed twice, which would count the same responses twice; make all seeds different")
        if self.no_repeat_ngram and self.exposure_bias:
            raise ValueError(
                "exposure_bias compares the models' own distributions, and no_repeat_ngram samples from another one; set one of them"
            )
        return self
