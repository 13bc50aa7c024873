"""The driver of a prepared run: its prompts, corpus and switches, before it is connected to any group."""

from launch.prepare import Prepared
from minirl.driver import Driver
from minirl.metrics import MetricsLog


def make_driver(prepared: Prepared, metrics: MetricsLog) -> Driver:
    """For the config's stage `distill`, at its beginning."""
    config = prepared.config
    return Driver(
        config.stages.distill,
        config.objective,
        prompts=[example.prompt for example in prepared.data.train],
        corpus=prepared.corpus,
        blocks_per_update=config.corpus.blocks_per_update if config.corpus else 0,
        max_response_tokens=config.data.max_response_tokens,
        teacher_share=config.rollout.teacher_share,
        seed=config.seed,
        metrics=metrics,
    )
