"""Config sections of the data: instruction records for all stages, and plain text for the pre-training loss."""

from typing import Any, Literal, Self

from pydantic import Field, JsonValue, NonNegativeInt, PositiveInt, field_validator, model_validator

from minirl.config.strict import PathText, StrictModel, fit


class SourceConfig(StrictModel):
    """One of several sources of training records."""

    source: PathText  # a source as in `data.train`
    limit: PositiveInt | None = None  # reads only the first so many records; `null`: `data.limit` alone applies
    # The share of this source in all training records, between 0 and 1: given for every source, adding up to 1, or for none. The source
    # with the fewest records for its share gives all of them. `null`: no shares.
    share: float | None = Field(None, gt=0, lt=1)


class RecordsConfig(StrictModel):
    """Instruction records: where prompts and gold responses come from, and how they are split."""

    # Where training records come from: one source, or a list of sources, each a name alone or a section with `source`, `limit` and `share`.
    # A source is a .jsonl, .json, .csv, .tsv or .parquet file, also with .gz behind it (docs/data.md lists the columns); a hub data set as
    # `owner/name`, `owner/name:split`, `owner/name:config/split` or `owner/name@revision:config/split`; data from installed packages, which
    # is `embedded:chatterbot`, `embedded:wordnet` (Debian's wordnet-base) or `embedded:reasoning_gym`; or files that the reference code
    # tokenised, a .bin file or the directory of train_0.bin, valid_0.bin, ... The ids of these are used as they are, without the template.
    train: list[SourceConfig] = Field(min_length=1)
    validation: PathText | None = None  # a source of validation records; `null`: a share of `train`, chosen by a hash of the prompt
    test: PathText | None = None  # a source of test records; `null`: a share of `train`, chosen by a hash of the prompt
    validation_share: float = Field(0.05, gt=0, lt=0.5)  # the share of `train` that becomes validation data if `validation` is `null`
    test_share: float = Field(0.1, gt=0, lt=0.5)  # the share of `train` that becomes test data if `test` is `null`
    limit: PositiveInt | None = None  # reads only the first so many records of each source; `null`: all

    @field_validator("train", mode="before")
    @classmethod
    def _sections_from_names(cls, value: Any) -> Any:
        sources = [value] if isinstance(value, str) else value
        if not isinstance(sources, list):
            return value
        return [{"source": source} if isinstance(source, str) else source for source in sources]

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        names, shares = [source.source for source in self.train], [source.share for source in self.train if source.share is not None]
        if len(set(names)) < len(names):
            raise ValueError(f"train names a source twice: {', '.join(names)}; name each once, with its limit or share")
        if shares and (len(shares) < len(names) or abs(sum(shares) - 1) > 1e-6):
            raise ValueError(f"the shares of train must be given for every source or for none, and add up to 1; they are {shares}")
        return self


class DataConfig(RecordsConfig):
    """The run's instruction data: where prompts and gold responses come from, how they are split and how long they may be."""

    template: Literal["chat", "alpaca"] = "chat"  # `chat`: the tokenizer's own chat template; `alpaca`: the Alpaca text, for base models
    # Arguments of the chat template by name, such as Qwen3's `{enable_thinking: false}` or Llama 3's `{date_string: 1 Jan 2026}`; with
    # `template: chat` only. They hold wherever the template is rendered: in training, in evaluation and for end tokens.
    template_arguments: dict[str, JsonValue] = Field(default_factory=dict)
    # The system prompt of records that have none, with `template: chat` only; `""`: an empty one. `null`: the template decides.
    system_prompt: str | None = None
    max_prompt_tokens: PositiveInt = 256  # the longest prompt allowed
    max_response_tokens: PositiveInt = 256  # longer gold responses are cut here, and sampled ones end here
    # Columns of records, and fields of messages, that may be left out. Any other one that is not used ends the run; docs/data.md says which
    # are used. A name that does not occur is no error.
    ignore_columns: list[str] = []
    overlong_prompts: Literal["error", "drop"] = "error"  # a prompt above the limit: `error` ends the run, `drop` leaves the record out

    @field_validator("template_arguments", mode="before")
    @classmethod
    def _switches(cls, value: Any) -> Any:
        """A word such as `off` is False, because a template takes any text for true."""
        return {name: fit(argument, bool) for name, argument in value.items()} if isinstance(value, dict) else value

    def with_records(self, records: RecordsConfig) -> "DataConfig":
        """All other settings of this section, with the sources and splits of `records`."""
        return self.model_copy(update={name: getattr(records, name) for name in RecordsConfig.model_fields})


class CorpusConfig(StrictModel):
    """Plain text for the pre-training loss, cut into blocks of `block_tokens`."""

    # Where the text comes from: a .txt or .txt.gz file (one document); a file or hub data set as in `data.train` with a column `text`;
    # `embedded:pydoc`, the manual of the running Python; or files that the reference code tokenised, a .bin file or the directory of
    # train_0.bin.
    source: PathText
    block_tokens: int = Field(512, ge=2)  # tokens in a block
    blocks_per_update: PositiveInt = 8  # blocks that one update of `distill` learns from, over all learner workers
    max_blocks: PositiveInt | None = None  # reads the source only until this many blocks are full; `null`: all of it
    test_blocks: NonNegativeInt = 16  # blocks at the end that are never learnt; the evaluation's language-model loss is measured on them
