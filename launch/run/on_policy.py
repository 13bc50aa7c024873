"""Makes the loop of an on-policy stage (`gkd`, `opd` or `distill`) from a prepared run."""

from collections.abc import Sequence

from launch.config import OnPolicyStage
from launch.prepare import PreparedRun
from minirl.training.log import MetricsLog
from minirl.training.on_policy_loop import OnPolicyLoop
from minirl.types import TokenSequence


class GoldResponses:
    """The gold sequences of the training data, as `SupervisedSequences` of the loop."""

    def __init__(self, sequences: Sequence[TokenSequence]):
        self.sequences = [sequence for sequence in sequences if sequence.targets]

    def __len__(self) -> int:
        return len(self.sequences)

    def block(self, index: int) -> TokenSequence:
        return self.sequences[index]


def make_loop(prepared: PreparedRun, stage: OnPolicyStage, metrics: MetricsLog) -> OnPolicyLoop:
    """The loop before its first iteration, not yet connected to groups."""
    config, train = prepared.config, prepared.data.train
    supervised, per_update = prepared.corpus, config.corpus.blocks_per_update if config.corpus else 0
    if stage.soft:
        supervised, per_update = GoldResponses([example.sequence for example in train]), stage.config.gold_per_update
    return OnPolicyLoop(
        stage.config,
        stage.objective,
        prompts=[example.prompt for example in train],
        supervised_sequences=supervised,
        supervised_per_update=per_update,
        max_response_tokens=config.data.max_response_tokens,
        teacher_share=stage.teacher_share,
        seed=config.seed,
        metrics=metrics,
        scores_from_sampling=stage.scores_from_sampling,
    )
