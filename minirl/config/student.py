"""The student, and how much of it is trained."""

from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from minirl.config.strict import StrictModel


class LoraConfig(StrictModel):
    """Train low-rank adapters on the student and leave all else as it is; definitions: the module docstring of `lora`."""

    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0  # what the adapters add is multiplied by alpha / rank
    dropout: float = Field(0.0, ge=0, lt=1)  # before the adapters, in supervised stages; on-policy ones train without any dropout
    target_modules: list[str] | Literal["all-linear"] = "all-linear"  # names of linear layers, as ["q_proj", "v_proj"]; never the head

    @model_validator(mode="after")
    def _some_target(self) -> Self:
        if not self.target_modules:
            raise ValueError("target_modules names no layer, so nothing would be trained; name some, or set all-linear")
        return self


class StudentConfig(StrictModel):
    """The student: a model of its own, or the teacher with only some of its layers."""

    model: str | None = None
    layers: list[NonNegativeInt] | None = None
    lora: LoraConfig | None = None  # null: every weight is trained

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.model is None) == (self.layers is None):
            raise ValueError("give the student either a model or the layers of the teacher that it keeps")
        return self
