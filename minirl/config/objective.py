"""The distillation objective and the divergences of the soft objectives."""

from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from minirl.config.strict import StrictModel

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
    """How far the student's distribution is from the teacher's, at every target (definitions: `minirl.objective.divergence`)."""

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
