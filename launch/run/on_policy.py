"""The on-policy stages of a prepared run: `gkd`, `opd` and `distill` are one loop with different switches."""

from collections.abc import Sequence

from launch.config import OnPolicyStage
from launch.prepare import PreparedRun
from minirl.training.log import MetricsLog
from minirl.training.on_policy_loop import OnPolicyLoop
from minirl.types import TokenSequence


class GoldResponses:
    """The gold sequences of the training data, as a driver draws them."""

    def __init__(self, sequences: Sequence[TokenSequence]):
        self.sequences = [sequence for sequence in sequences if sequence.targets]

    def __len__(self) -> int:
        return len(self.sequences)

    def block(self, index: int) -> TokenSequence:
        return self.sequences[index]


def make_driver(prepared: PreparedRun, stage: OnPolicyStage, metrics: MetricsLog) -> OnPolicyLoop:
    """At its beginning, before it is connected to any group."""
    config, train = prepared.config, prepared.data.train
    given, per_update = prepared.corpus, config.corpus.blocks_per_update if config.corpus else 0
    if stage.soft:
        given, per_update = GoldResponses([example.sequence for example in train]), stage.config.gold_per_update
    return OnPolicyLoop(
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
