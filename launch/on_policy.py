"""The on-policy stages of a prepared run: `gkd`, `opd` and `distill` are one loop with different switches."""

from collections.abc import Sequence as Items
from dataclasses import dataclass

from launch.config import RunConfig
from launch.prepare import Prepared
from minirl.config.objective import ObjectiveConfig, SoftTargetsConfig
from minirl.config.stages import DistillConfig
from minirl.driver import Driver
from minirl.metrics import MetricsLog
from minirl.rollout import Sequence


@dataclass(frozen=True)
class OnPolicyStage:
    """What sets one on-policy stage apart. soft: a divergence in place of the objective; only `distill` mixes the teacher in."""

    name: str
    config: DistillConfig
    objective: ObjectiveConfig
    teacher_share: float = 0.0
    soft: SoftTargetsConfig | None = None


def on_policy_stage(config: RunConfig, name: str) -> OnPolicyStage:
    stages = config.stages
    if name == "gkd":
        return OnPolicyStage(name, stages.gkd, ObjectiveConfig(preset="gkd"), soft=SoftTargetsConfig(divergence=stages.gkd.divergence))
    if name == "opd":
        return OnPolicyStage(name, stages.opd, ObjectiveConfig(preset="opd"))
    return OnPolicyStage(name, stages.distill, config.objective, config.rollout.teacher_share)


class GoldResponses:
    """The gold sequences of the training data, as a driver draws them."""

    def __init__(self, sequences: Items[Sequence]):
        self.sequences = [sequence for sequence in sequences if sequence.targets]

    def __len__(self) -> int:
        return len(self.sequences)

    def block(self, index: int) -> Sequence:
        return self.sequences[index]


def make_driver(prepared: Prepared, stage: OnPolicyStage, metrics: MetricsLog) -> Driver:
    """At its beginning, before it is connected to any group."""
    config, train = prepared.config, prepared.data.train
    given, per_update = prepared.corpus, config.corpus.blocks_per_update if config.corpus else 0
    if stage.soft:
        given, per_update = GoldResponses([example.sequence for example in train]), stage.config.gold_per_update
    return Driver(
        stage.config,
        stage.objective,
        prompts=[example.prompt for example in train],
        given=given,
        given_per_update=per_update,
        max_response_tokens=config.data.max_response_tokens,
        teacher_share=stage.teacher_share,
        seed=config.seed,
        metrics=metrics,
    )
