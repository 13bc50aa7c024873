"""Typed, strict configuration: what the algorithm and the data need. An unknown key is an error that names the nearest key."""

import difflib
import re
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from minirl.errors import InputError

M = TypeVar("M", bound=BaseModel)


class StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


# What each preset stands for; any switch can be set by hand beside it. Definitions: the module docstrings of `credit` and `losses`.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "lmops": {
        "returns": "reward_to_go", "discount": 0.95, "reward_scale": 0.5, "reward_clip": 100.0, "whiten": True, "clip_form": "ppo",
        "single_step_weight": "none", "pretrain_kd_share": 0.5, "credit": "frozen",
    },
    "opd": {
        "returns": "immediate", "length_normalization": False, "ratio_clip": None, "single_step_coefficient": 0.0,
        "pretrain_coefficient": 0.0,
    },
    "gkd": {"policy_gradient_coefficient": 0.0, "single_step_weight": "none", "pretrain_coefficient": 0.0},
}  # fmt: skip


class ObjectiveConfig(StrictModel):
    """The distillation objective; the defaults are the preset `paper`."""

    preset: Literal["paper", "lmops", "opd", "gkd"] = "paper"
    returns: Literal["future", "reward_to_go", "immediate"] = "future"
    discount: float = Field(1.0, gt=0, le=1)
    length_normalization: bool = True
    reward_scale: PositiveFloat = 1.0  # rewards are divided by it
    reward_clip: PositiveFloat | None = None
    whiten: bool = False
    ratio_clip: PositiveFloat | None = 0.2
    clip_form: Literal["outside", "ppo"] = "outside"
    importance: Literal["per_token", "exact"] = "per_token"
    single_step_weight: Literal["importance", "none"] = "importance"
    policy_gradient_coefficient: float = Field(1.0, ge=0)
    single_step_coefficient: float = Field(1.0, ge=0)
    pretrain_coefficient: float = Field(1.0, ge=0)
    pretrain_kd_share: float = Field(0.0, ge=0, le=1)
    reduction: Literal["token", "response"] = "token"
    credit: Literal["live", "frozen"] = "live"
    truncated: Literal["keep", "drop"] = "keep"

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {**PRESETS.get(values.get("preset", "paper"), {}), **values}

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        if self.whiten and self.credit == "live":
            raise ValueError("whiten needs credit: frozen, since live rewards are not known before the update's own forward pass")
        if self.returns == "immediate" and (self.discount != 1.0 or self.length_normalization):
            raise ValueError("returns: immediate has no future to discount or average: set discount: 1.0 and length_normalization: false")
        if self.importance == "exact" and self._departs_from_exact():
            raise ValueError(
                "importance: exact is an identity of the plain objective: set length_normalization: false, ratio_clip: null, and leave "
                "returns, discount, rewards, whiten, credit and single_step_weight at the preset paper"
            )
        return self

    def _departs_from_exact(self) -> bool:
        plain = {
            "returns": "future", "discount": 1.0, "length_normalization": False, "whiten": False, "ratio_clip": None, "reward_scale": 1.0,
            "reward_clip": None, "credit": "live", "single_step_weight": "importance",
        }  # fmt: skip
        return any(getattr(self, switch) != value for switch, value in plain.items())


class DivergenceConfig(StrictModel):
    """How far the student's distribution is from the teacher's, at every target (definitions: `minirl.divergence`)."""

    kind: Literal["forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "logit_mse", "total_variation"] = "forward_kl"
    temperature: PositiveFloat = 1.0  # of both networks, here alone; the loss keeps its size
    beta: float | None = None  # jsd: the teacher's share of the mixture and its weight; 0.5
    skew: float | None = None  # skew kinds: the share of the first distribution in the second; 0.1

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        kind = values.get("kind")
        defaults = {"beta": 0.5} if kind == "jsd" else {"skew": 0.1} if kind in ("skew_forward_kl", "skew_reverse_kl") else {}
        return values | {name: value for name, value in defaults.items() if values.get(name) is None}

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        if self.beta is not None and self.kind != "jsd":
            raise ValueError(f"beta belongs to kind: jsd, and {self.kind} has none: leave it out")
        if self.skew is not None and not self.kind.startswith("skew"):
            raise ValueError(f"skew belongs to the skew kinds, and {self.kind} has none: leave it out")
        if self.beta is not None and not 0 < self.beta < 1:
            raise ValueError(
                "beta must lie between 0 and 1, where jsd is 0 whatever the student does: use kind: forward_kl for beta near 0, "
                "reverse_kl for beta near 1"
            )
        if self.skew is not None and not 0 < self.skew < 1:
            raise ValueError(f"skew must lie between 0 and 1: use kind: {self.kind.removeprefix('skew_')} for none")
        if self.kind == "logit_mse" and self.temperature != 1.0:
            raise ValueError("logit_mse compares the logits themselves, from which the temperature cancels: leave it out")
        return self


class SoftTargetsConfig(StrictModel):
    """What a target teaches: hard_weight times its token's cross-entropy, and the rest the divergence from the teacher there."""

    divergence: DivergenceConfig = DivergenceConfig()
    hard_weight: float = Field(0.0, ge=0, le=1)


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


class OptimizerStageConfig(StrictModel):
    """What every training stage sets."""

    learning_rate: PositiveFloat
    min_learning_rate: float = Field(0.0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_updates: NonNegativeInt = 0
    weight_decay: float = Field(0.0, ge=0)
    betas: list[float] = Field([0.9, 0.999], min_length=2, max_length=2)
    max_grad_norm: PositiveFloat | None = 1.0
    max_target_tokens: PositiveInt | None = None  # the stage ends with the update that has learnt from so many, repeats counted

    @model_validator(mode="after")
    def _knows_its_end(self) -> Self:
        if self.max_target_tokens and self.schedule == "cosine":
            raise ValueError("schedule: cosine must know its last update, which max_target_tokens leaves open; set schedule: constant")
        return self


class SftConfig(OptimizerStageConfig):
    """Supervised fine-tuning on gold responses; the checkpoint with the lowest validation loss is kept."""

    epochs: PositiveInt = 3
    sequences_per_update: PositiveInt = 32
    max_updates: PositiveInt | None = None
    validations_per_epoch: PositiveInt = 1


class KdConfig(SftConfig):
    """Knowledge distillation on gold responses: the teacher's whole distribution at each of their tokens."""

    soft: SoftTargetsConfig = SoftTargetsConfig()


class SeqkdConfig(SftConfig):
    """Sequence-level distillation: the teacher writes a response to every training prompt, then fine-tuning on these.

    gold_share: of the prompts, those that keep their gold response. soft: the teacher's whole distribution too, as in `kd`.
    """

    samples_per_prompt: PositiveInt = 1
    gold_share: float = Field(0.0, ge=0, lt=1)
    soft: SoftTargetsConfig | None = None


class DistillConfig(OptimizerStageConfig):
    """On-policy distillation: `iterations` times sample, score, credit, update, publish."""

    iterations: PositiveInt
    prompts_per_iteration: PositiveInt = 256
    samples_per_prompt: PositiveInt = 1
    epochs_per_iteration: PositiveInt = 1
    updates_per_epoch: PositiveInt = 1
    max_staleness: int = Field(0, ge=0, le=2)  # iterations that are sampled ahead; 0 is exact, above it the importance ratio corrects
    validate_every: PositiveInt = 10
    validation_prompts: PositiveInt = 64
    checkpoint_every: PositiveInt = 10
    keep_checkpoints: PositiveInt = 1
    leaves: Literal["best", "last"] = "best"  # the student that goes on: best by validation Rouge-L, as the paper selects, or the final one

    @property
    def student_prompts(self) -> int:
        """Prompts of an iteration that get the student's responses."""
        return self.prompts_per_iteration

    @property
    def responses_per_iteration(self) -> int:
        """Of the student."""
        return self.student_prompts * self.samples_per_prompt

    @property
    def updates_per_iteration(self) -> int:
        return self.epochs_per_iteration * self.updates_per_epoch

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.responses_per_iteration % self.updates_per_epoch:
            raise ValueError(
                f"{self.responses_per_iteration} responses per iteration do not divide into {self.updates_per_epoch} updates per epoch; "
                "change prompts_per_iteration, samples_per_prompt or updates_per_epoch"
            )
        if self.max_target_tokens and self.max_staleness:
            raise ValueError("max_target_tokens may end the stage while further iterations are on their way; set max_staleness: 0")
        return self


class GkdConfig(DistillConfig):
    """Generalised knowledge distillation: a divergence at each token of the student's own responses, and of gold ones.

    student_share: of the prompts, those that get student responses; the others are learnt from with their gold response.
    """

    divergence: DivergenceConfig = DivergenceConfig(kind="reverse_kl")
    student_share: float = Field(1.0, gt=0, le=1)

    @property
    def student_prompts(self) -> int:
        return round(self.student_share * self.prompts_per_iteration)

    @property
    def gold_per_update(self) -> int:
        return (self.prompts_per_iteration - self.student_prompts) * self.samples_per_prompt // self.updates_per_epoch

    @model_validator(mode="after")
    def _shares(self) -> Self:
        gold = (self.prompts_per_iteration - self.student_prompts) * self.samples_per_prompt
        if not self.student_prompts or gold % self.updates_per_epoch:
            raise ValueError(
                f"student_share: {self.student_share} makes {self.student_prompts} student prompts and {gold} gold responses an iteration; "
                "there must be some of the first, and the second must divide into the updates of an epoch"
            )
        return self


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
    corpus_blocks: NonNegativeInt = 16  # of the plain corpus, for the language-model loss on it

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


class YamlLoader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, except that 5e-6 is a number, as in YAML 1.2."""


YamlLoader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+0123456789."))


def read_config(model: type[M], path: str | Path, overrides: list[str]) -> M:
    """Read a YAML file, apply `key.path=value` overrides, and validate. Raises InputError with one sentence."""
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), YamlLoader)
    except OSError as error:
        raise InputError(f"cannot read the config {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"the config {path} is not UTF-8 text: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a mapping of keys to values")
    for override in overrides:
        _apply_override(values, override)
    return validate_config(model, values)


def _apply_override(values: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"the override {override!r} must have the form key.path=value")
    *parents, last = key.split(".")
    for parent in parents:
        if values.get(parent) is None:
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise InputError(f"the override {override!r} goes through {parent}, which is a value and has no keys")
    try:
        values[last] = yaml.load(text, YamlLoader)
    except yaml.YAMLError:
        raise InputError(f"the value of the override {override!r} is not valid YAML") from None


def validate_config(model: type[M], values: dict) -> M:
    """Validate; the first problem becomes one sentence."""
    try:
        return model.model_validate(values)
    except pydantic.ValidationError as error:
        problems = error.errors(include_url=False)
        unknown = [p for p in problems if p["type"] == "extra_forbidden"]
        raise InputError(_sentence(model, (unknown or problems)[0])) from None


def _sentence(model: type[BaseModel], problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        siblings = _fields_at(model, problem["loc"][:-1])
        close = difflib.get_close_matches(str(problem["loc"][-1]), siblings, n=1, cutoff=0.5)
        return f"{key} is not a known key; " + (f"did you mean {close[0]}?" if close else f"known here: {', '.join(siblings)}")
    if problem["type"] == "missing":
        return f"{key} is missing from the config and has no default"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key} = {problem['input']!r} does not fit: {message[0].lower() + message[1:]}"


def _fields_at(model: type[BaseModel], location: tuple) -> list[str]:
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            kinds = getattr(model.model_fields[part].annotation, "__args__", None) or (model.model_fields[part].annotation,)
            nested = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
            if not nested:
                break
            model = nested[0]
    return sorted(model.model_fields)
