"""The shipped configs are valid, and a config that cannot be run is refused with one sentence."""

from pathlib import Path

import pytest
import yaml

from launch.config import RunConfig
from launch.experiment.runner import Experiment
from minirl.config.experiment import ExperimentConfig
from minirl.config.reader import read_config, validate_config
from minirl.errors import InputError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
EXPERIMENTS = [file for file in CONFIGS if file.name.startswith("experiment")]
RUNS = [file for file in CONFIGS if file not in EXPERIMENTS]
ENSEMBLE = ["teacher.model=null", "teacher.ensemble=[{model: a}, {model: b}]"]
STAGE = {"iterations": 1, "learning_rate": 1e-3}
SMALLEST = {
    "directory": "runs/x",
    "teacher": {"model": "owner/teacher"},
    "student": {"layers": [0, 1]},
    "data": {"train": "records.jsonl"},
    "stages": {},
}


def changed(**changes) -> dict:
    return SMALLEST | changes


@pytest.mark.parametrize("file", RUNS, ids=lambda file: file.name)
def test_every_shipped_config_is_valid(file):
    config = read_config(RunConfig, file, [])
    assert config.stages.distill or file.name == "paper_evaluation.yaml"
    assert len(config.stages.evaluate.seeds) >= 3


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.name)
def test_every_run_of_an_experiment_is_valid_and_as_long_as_the_others(file):
    """Rows are comparable only at equal work."""
    experiment = Experiment(read_config(ExperimentConfig, file, []), None)
    runs = experiment.runs([])
    budgets = {getattr(run.config.stages, stage).max_target_tokens for run in runs for stage in run.config.stages.student_directories()}
    assert len(budgets) == 1 and None not in budgets
    assert {run.config.teacher.model for run in runs} == {f"{experiment.directory}/common/sft_teacher/best"}


def test_there_are_configs():
    assert {"quickstart.yaml", "experiment.yaml"} <= {file.name for file in CONFIGS}


def test_the_smallest_config():
    config = validate_config(RunConfig, SMALLEST)
    assert config.stages.distill is None and config.rollout.teacher_share == 0.0 and config.objective.preset == "paper"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["stages.distil.iterations=3"], "stages.distil is not a known key; did you mean distill?"),
        (["rolout.workers=2"], "rolout is not a known key; did you mean rollout?"),
        (["learner.zero_stag=2"], "learner.zero_stag is not a known key; did you mean zero_stage?"),
        (["objective.presets=paper"], "objective.presets is not a known key; did you mean preset?"),
        (["learner.zero_stage=4"], "learner.zero_stage = 4 does not fit"),
        (["rollout.teacher_share=1.0"], "rollout.teacher_share = 1.0 does not fit"),
        (["stages.distill.learning_rate=fast"], "stages.distill.learning_rate = 'fast' does not fit"),
        (["teacher.dtype=float16"], "teacher.dtype = 'float16' does not fit"),
        (["rollout.top_p=0.9", "rollout.teacher_share=0.2"], "rollout.top_p must be 1: with mixing"),
        (["rollout.top_p=0.9"], "rollout.top_p must be 1: a smaller value changes"),
        (["corpus=null"], "the pre-training loss needs a corpus"),
        (["student.model=x"], "either a model or the layers"),
        ([*ENSEMBLE, "rollout.teacher_share=0.2"], "rollout.teacher_share mixes one teacher into the sampling, and there is an ensemble"),
        ([*ENSEMBLE, "stages.sft_teacher={learning_rate: 1e-3}"], "stages.sft_teacher trains one teacher, and there is an ensemble"),
        (ENSEMBLE, "student.layers cuts the student out of one teacher"),
        (["stages.gkd={learning_rate: 1e-3, iterations: 1, divergence: {kind: jsd, beta: 1.0}}"], "stages.gkd.divergence"),
        (["stages.kd={learning_rate: 1e-3, soft: {divergence: {kind: forward_kl, skew: 0.1}}}"], "stages.kd.soft.divergence"),
        (["stages.seqkd={learning_rate: 1e-3, gold_share: 1.0}"], "stages.seqkd.gold_share = 1.0 does not fit"),
        (["stages.sft={learning_rate: 1e-3, schedule: cosine, max_target_tokens: 9}"], "schedule: cosine must know its last update"),
        (["stages.distill.max_staleness=1", "stages.distill.max_target_tokens=9"], "set max_staleness: 0"),
    ],
)
def test_a_config_that_cannot_be_run_is_refused_with_one_sentence(tmp_path, overrides, sentence):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(changed(stages={"distill": STAGE}, corpus={"source": "text.txt"})))
    read_config(RunConfig, file, [])
    with pytest.raises(InputError) as caught:
        read_config(RunConfig, file, overrides)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_without_the_pretraining_loss_no_corpus_is_needed():
    validate_config(RunConfig, changed(stages={"distill": STAGE}, objective={"preset": "gkd"}))
    validate_config(RunConfig, changed(stages={"distill": STAGE}, objective={"pretrain_coefficient": 0.0}))
