"""Instruction data and plain text."""

from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from minirl.config.strict import StrictModel


class SourceConfig(StrictModel):
    """One of several sources of training records. share: of all the records, where the scarcest source decides how many those are."""

    source: str
    limit: PositiveInt | None = None  # its first records only
    share: float | None = Field(None, gt=0, lt=1)  # of every source or of none


class DataConfig(StrictModel):
    """Instruction data: where prompts and gold responses come from and how long they may be."""

    # A .jsonl or .parquet file, a hub data set ("owner/name" or "owner/name:split"), "embedded:chatterbot", "embedded:wordnet" (Debian's
    # wordnet-base), "embedded:reasoning_gym" (out of installed packages: the modules `embedded` and `wordnet`), or what the reference
    # tokenised: a .bin file, or the directory of train_0.bin, valid_0.bin, ... (used id by id, whatever the template).
    train: list[SourceConfig] = Field(min_length=1)  # several, as a list: each a name alone, or with its limit or share
    validation: str | None = None  # null: a share of `train`, split by a hash of the prompt
    test: str | None = None  # null: the same
    validation_share: float = Field(0.05, gt=0, lt=0.5)
    test_share: float = Field(0.1, gt=0, lt=0.5)
    template: Literal["chat", "alpaca"] = "chat"
    system_prompt: str | None = None
    max_prompt_tokens: PositiveInt = 256
    max_response_tokens: PositiveInt = 256
    overlong_prompts: Literal["error", "drop"] = "error"
    limit: PositiveInt | None = None  # the first records only, of each source

    @field_validator("train", mode="before")
    @classmethod
    def _names_are_sources(cls, value: Any) -> Any:
        named = [value] if isinstance(value, str) else value
        return [{"source": one} if isinstance(one, str) else one for one in named] if isinstance(named, list) else value

    @model_validator(mode="after")
    def _sources_fit_together(self) -> Self:
        names, shares = [one.source for one in self.train], [one.share for one in self.train if one.share is not None]
        if len(set(names)) < len(names):
            raise ValueError(f"train names a source twice: {', '.join(names)}; name each once, with the limit or share that it is to have")
        if shares and (len(shares) < len(names) or abs(sum(shares) - 1) > 1e-6):
            raise ValueError(f"the shares of train must be given for every source or for none, and add up to 1; they are {shares}")
        return self


class CorpusConfig(StrictModel):
    """Plain text for the pre-training loss, cut into blocks of `block_tokens`."""

    # A .txt file (one document), a .jsonl or .parquet file or a hub data set (column `text`), "embedded:pydoc", or what the reference
    # tokenised: a .bin file, or the directory of train_0.bin.
    source: str
    block_tokens: int = Field(512, ge=2)
    blocks_per_update: PositiveInt = 8
    max_blocks: PositiveInt | None = None  # read no further than this; null: all of it
    test_blocks: NonNegativeInt = 16  # the last of them, never learnt: the evaluation's language-model loss is that of these
