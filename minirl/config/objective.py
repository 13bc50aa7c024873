"""Config sections of the objectives: the on-policy objective, its presets, and the divergences."""

from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from minirl.config.strict import StrictModel

# The switches that each preset sets; any of them can be set by hand as well. `minirl.objective.credit` and `minirl.objective.losses`
# define them.
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
    """The objective of `distill`. A preset sets all switches, and any switch can be set by hand beside it; the defaults are `paper`.

    In the comments, q is the student, p the teacher, r the reward log p - log q of a sampled token, and rho the importance ratio: q over
    the probability with which the token was sampled.
    """

    # Sets all switches below: `paper` as the paper prints the method, `lmops` as the authors' code computes it, `opd` for on-policy
    # distillation without future rewards, `gkd` for the single-step term alone.
    preset: Literal["paper", "lmops", "opd", "gkd"] = "paper"
    # The rewards that a token is credited with: `future`: those after it; `reward_to_go`: its own and those after it; `immediate`: its own.
    returns: Literal["future", "reward_to_go", "immediate"] = "future"
    discount: float = Field(1.0, gt=0, le=1)  # the factor per token that a reward lies further ahead, above 0 up to 1; 1: no discount
    length_normalization: bool = True  # divides a return by the number of rewards in it
    reward_scale: PositiveFloat = 1.0  # rewards are divided by it
    reward_clip: PositiveFloat | None = None  # scaled rewards are clipped to plus and minus this; `null`: no clipping
    # Gives the advantages of an update mean 0 and variance 1, with zeros up to `max_response_tokens`; needs `credit: frozen`.
    whiten: bool = False
    ratio_clip: PositiveFloat | None = 0.2  # rho is clipped to 1 plus and minus this in the policy-gradient loss; `null`: no clipping
    # How the clip enters, with A the advantage: `outside`: A min(rho, clip rho), as the paper prints it; `ppo`: min(A rho, A clip rho), as
    # the reference code computes it.
    clip_form: Literal["outside", "ppo"] = "outside"
    # Importance weights: `per_token`: the token's own rho, of low variance, biased under teacher mixing; `exact`: products over tokens,
    # unbiased, with a variance that grows with the length, for small experiments.
    importance: Literal["per_token", "exact"] = "per_token"
    single_step_weight: Literal["importance", "none"] = "importance"  # weights the single-step term at each token by rho, or not at all
    policy_gradient_coefficient: float = Field(1.0, ge=0)  # the factor of the policy-gradient loss
    single_step_coefficient: float = Field(1.0, ge=0)  # the factor of the single-step term, the exact reverse KL at each token
    pretrain_coefficient: float = Field(1.0, ge=0)  # the factor of the pre-training loss; above 0 it needs a `corpus`
    # The share, 0 to 1, of the pre-training loss that is cross-entropy against the teacher's distribution; the rest is language modelling.
    pretrain_kd_share: float = Field(0.0, ge=0, le=1)
    # What the on-policy losses of an update are averaged over: `token`: its response tokens; `response`: its responses.
    reduction: Literal["token", "response"] = "token"
    # The student that rewards are computed from: `live`: the current one, in each update; `frozen`: the one before the iteration's updates.
    credit: Literal["live", "frozen"] = "live"
    # Responses that the length limit cut: `keep` learns from them, `drop` takes them out of the loss, which biases it.
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
            raise ValueError("whiten needs credit: frozen, because live rewards are known only after the update's own forward pass")
        if self.returns == "immediate" and (self.discount != 1.0 or self.length_normalization):
            raise ValueError("returns: immediate has no future to discount or average; set discount: 1.0 and length_normalization: false")
        if self.importance == "exact" and self._departs_from_exact():
            raise ValueError(
                "importance: exact holds for the plain objective only; set length_normalization: false, ratio_clip: null, and leave "
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
    """The divergence between the student's and the teacher's distribution at every target (defined in `minirl/objective/divergence.py`)."""

    # Which divergence: `forward_kl` is KL(teacher || student), `reverse_kl` is KL(student || teacher).
    kind: Literal["forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "logit_mse", "total_variation"] = "forward_kl"
    temperature: PositiveFloat = 1.0  # divides the logits of both models, in this divergence only; the size of the loss is kept
    beta: float | None = None  # `jsd` only, between 0 and 1: the teacher's share of the mixture, and the weight of its KL; `null`: 0.5
    skew: float | None = None  # skew kinds only, between 0 and 1: the share of KL's first distribution in its second one; `null`: 0.1

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
            raise ValueError(f"beta belongs to kind: jsd, and {self.kind} has none; leave it out")
        if self.skew is not None and not self.kind.startswith("skew"):
            raise ValueError(f"skew belongs to the skew kinds, and {self.kind} has none; leave it out")
        if self.beta is not None and not 0 < self.beta < 1:
            raise ValueError(
                "beta must lie between 0 and 1, because jsd is always 0 at both ends; use kind: forward_kl for beta near 0, "
                "reverse_kl for beta near 1"
            )
        if self.skew is not None and not 0 < self.skew < 1:
            raise ValueError(f"skew must lie between 0 and 1; use kind: {self.kind.removeprefix('skew_')} for none")
        if self.kind == "logit_mse" and self.temperature != 1.0:
            raise ValueError("logit_mse compares the logits themselves, where the temperature cancels; leave temperature out")
        return self


class SoftTargetsConfig(StrictModel):
    """The loss of a target: a weighted sum of the cross-entropy of its token and the divergence from the teacher at it."""

    divergence: DivergenceConfig = DivergenceConfig()  # the divergence between student and teacher
    hard_weight: float = Field(0.0, ge=0, le=1)  # the weight of the cross-entropy, 0 to 1; the divergence has the rest
