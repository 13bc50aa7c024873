"""Config sections of the student: the model it starts from, and the LoRA adapters if only those are trained."""

from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from minirl.config.strict import PathText, StrictModel


class LoraConfig(StrictModel):
    """Low-rank adapters on the student: only they are trained, and all other weights stay as they are (`minirl/model/lora.py`)."""

    rank: PositiveInt = 8  # the rank of each adapter
    alpha: PositiveFloat = 16.0  # the adapters' output is multiplied by `alpha / rank`
    # Dropout on the input of the adapters, from 0 up to but not including 1, in supervised stages. On-policy stages train without dropout.
    dropout: float = Field(0.0, ge=0, lt=1)
    # The linear layers that get an adapter: names such as `["q_proj", "v_proj"]`, or `all-linear`. The output head never gets one.
    target_modules: list[str] | Literal["all-linear"] = "all-linear"

    @model_validator(mode="after")
    def _refuse_no_target(self) -> Self:
        if not self.target_modules:
            raise ValueError("target_modules names no layer, so nothing would be trained; name some, or set all-linear")
        return self


class StudentConfig(StrictModel):
    """The student: a model with its own weights, or the teacher with only some of its layers."""

    model: PathText | None = None  # a hub name or a local directory; `null` if `layers` is set
    layers: list[NonNegativeInt] | None = None  # the teacher's layers that the student is made of, counted from 0; `null` if `model` is set
    lora: LoraConfig | None = None  # trains adapters only; `null`: every weight is trained

    @model_validator(mode="after")
    def _refuse_two_origins_or_none(self) -> Self:
        if (self.model is None) == (self.layers is None):
            raise ValueError("give the student either a model or the layers of the teacher that it keeps; set one of model and layers")
        return self
