"""StrictModel: the base of every config section; it refuses unknown keys and mistyped values, and is immutable."""

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
