"""The shipped configs are valid, and a config that cannot be run is refused with one sentence."""

from pathlib import Path

import pytest
import yaml

from launch.config import OnPolicyStage, RunConfig, on_policy_stage
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


# --- the order of the stages ---

SFT = {"learning_rate": 1e-3}
TASK = SFT | {"data": {"train": "task.jsonl"}}
LIST = [{"task_sft": TASK}, {"distill": STAGE}, {"kd": None}, {"sft": SFT}, {"evaluate": {"prompts": 5}}]
DISTILLED = {"objective": {"pretrain_coefficient": 0.0}}


@pytest.fixture
def read(tmp_path):
    """Reads the smallest config with these stages and overrides."""

    def read(stages, *overrides) -> RunConfig:
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(changed(stages=stages, **DISTILLED)))
        return read_config(RunConfig, file, list(overrides))

    return read


def test_a_mapping_of_stages_runs_in_the_default_order_whatever_the_order_of_its_keys(read):
    stages = read({"evaluate": {}, "task_sft": TASK, "distill": STAGE, "opd": STAGE, "sft": SFT, "sft_teacher": SFT}).stages
    assert stages.in_order() == ["sft_teacher", "sft", "opd", "distill", "task_sft", "evaluate"]
    assert list(stages.student_directories().values()) == ["sft/best", "opd/best", "distill/best", "task_sft/best"]


def test_a_list_of_stages_runs_in_its_order_and_takes_the_same_overrides(read):
    stages = read(LIST, "stages.distill.iterations=3", "stages.task_sft.data.limit=9", "stages.sft.epochs=7").stages
    assert stages.in_order() == ["task_sft", "distill", "sft", "evaluate"]
    assert list(stages.student_directories()) == ["task_sft", "distill", "sft"]
    assert (stages.distill.iterations, stages.task_sft.data.limit, stages.sft.epochs, stages.evaluate.prompts) == (3, 9, 7, 5)
    assert read(LIST, "stages.sft=null").stages.in_order() == ["task_sft", "distill", "evaluate"]
    assert read(LIST, "stages=[{kd: {learning_rate: 1e-3}}]").stages.in_order() == ["kd"]
    assert read({"sft": SFT, "distill": STAGE}, "stages.order=[distill, sft]").stages.in_order() == ["distill", "sft"]


def test_the_order_survives_the_file_that_a_child_process_reads(read, tmp_path):
    """`minirl experiment` writes its runs' configs for its children."""
    config = read(LIST)
    (tmp_path / "child.yaml").write_text(yaml.safe_dump(config.model_dump(exclude_unset=True), sort_keys=False))
    assert read_config(RunConfig, tmp_path / "child.yaml", []) == config
    assert config.model_copy(update={"stages": config.stages.model_copy(update={"evaluate": None})}).stages.in_order()[-1] == "sft"
    assert read(LIST[:-1]).with_evaluation().stages.in_order() == ["task_sft", "distill", "sft", "evaluate"]


@pytest.mark.parametrize(
    ("stages", "overrides", "sentence"),
    [
        ([{"sft": SFT}, {"kd": SFT}, {"sft": SFT}], [], "sft comes 2 times in the order of the stages"),
        ([{"evaluate": {}}, {"sft": SFT}], [], "evaluate measures the students of all stages, so it must be the last one"),
        ([{"sft": SFT}, {"distil": STAGE}], [], "stages.distil is not a known key; did you mean distill?"),
        ([{"sft": SFT}, {"distill": STAGE | {"iteration": 3}}], [], "stages.distill.iteration is not a known key"),
        ([{"sft": SFT, "distill": STAGE}], [], "each item of the list must be one stage, such as `- sft: {...}`; item 1 has"),
        ([{"sft": SFT}, {"distill": None, "iterations": 3}], [], "item 2 has the keys distill, iterations"),
        ([{"sft": SFT}, "evaluate"], [], "item 2 has 'evaluate'"),
        ([{"sft": SFT}, []], [], "item 2 has []"),
        ([{"sft": SFT}], ["stages.distill.iterations=3"], "needs an item distill in the list stages, which has none"),
        ([{"sft": SFT}, {"sft": SFT}], ["stages.sft.epochs=3"], "needs an item sft in the list stages, which has 2"),
        ([{"sft": SFT}], ["stages.sft.learning_rate.more=3"], "goes through learning_rate, which is a value"),
        ({"sft": SFT, "kd": SFT, "order": ["sft"]}, [], "the order of the stages lacks kd; add it to stages.order"),
        ({"sft": SFT, "order": ["sft", "kdd"]}, [], "kdd is no stage; the stages are sft_teacher, sft, kd"),
        ([{"order": ["sft"]}, {"sft": SFT}], [], "order is no stage"),
        ("sft", [], "stages = 'sft' does not fit"),
        ({"task_sft": SFT}, [], "stages.task_sft.data is missing from the config"),
        ({"task_sft": SFT | {"data": {"train": "x", "template": "alpaca"}}}, [], "stages.task_sft.data.template is not a known key"),
        ({"task_sft": SFT | {"data": {"train": ["x", "x"]}}}, [], "stages.task_sft.data: train names a source twice"),
    ],
)  # fmt: skip
def test_stages_that_cannot_run_are_refused_with_one_sentence(read, stages, overrides, sentence):
    with pytest.raises(InputError) as caught:
        read(stages, *overrides)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_scores_come_out_of_sampling_where_the_rollout_engines_hold_the_teacher(read):
    def stage(name: str, *overrides: str) -> OnPolicyStage:
        config = read({"distill": STAGE, "opd": STAGE}, "rollout.teacher_share=0.2", "objective.pretrain_coefficient=0", *overrides)
        return on_policy_stage(config, name)

    assert stage("distill").scores_from_sampling and not stage("distill").needs_teacher_group
    assert stage("distill", "teacher.scores=from_sampling").scores_from_sampling
    assert not stage("opd").scores_from_sampling and stage("opd").needs_teacher_group
    for override in ("teacher.scores=group", "rollout.teacher_share=0", "rollout.dtype=float32"):
        settings = stage("distill", override, *(["teacher.dtype=bfloat16"] if "dtype" in override else []))
        assert not settings.scores_from_sampling and settings.needs_teacher_group
    text = stage("distill", "objective.pretrain_coefficient=1", "objective.pretrain_kd_share=0.5", "corpus={source: c.txt}")
    assert text.scores_from_sampling and text.needs_teacher_group


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["rollout.teacher_share=0"], "rollout.teacher_share is 0"),
        ([*ENSEMBLE, "rollout.teacher_share=0", "student={model: s}"], "there is an ensemble"),
        (["rollout.dtype=float32", "teacher.dtype=bfloat16"], "teacher.dtype is bfloat16 and rollout.dtype float32"),
        (["stages.distill=null"], "there is no stage distill"),
    ],
)
def test_scores_that_sampling_cannot_give_are_refused_with_one_sentence(read, overrides, reason):
    settings = ["teacher.scores=from_sampling", "rollout.teacher_share=0.2", "objective.pretrain_coefficient=0"]
    with pytest.raises(InputError) as caught:
        read({"distill": STAGE, "opd": STAGE}, *settings, *overrides)
    assert f"teacher.scores: from_sampling is impossible, because {reason}" in str(caught.value) and "\n" not in str(caught.value)


def test_an_override_of_a_list_without_named_items_is_refused(read):
    for sources in ([{"source": "a"}, {"source": "b"}], ["a", "b"]):
        with pytest.raises(InputError, match="needs an item source in the list train"):
            read({}, f"data.train={sources}", "data.train.source=c")


def test_the_data_of_a_task_takes_template_and_limits_from_the_run():
    data = {"train": "records.jsonl", "test": "test.jsonl", "limit": 3, "max_prompt_tokens": 77, "template": "alpaca"}
    stages = {"task_sft": SFT | {"data": {"train": "task.jsonl", "validation_share": 0.2}}}
    config = validate_config(RunConfig, changed(data=data, stages=stages))
    task = config.data.with_records(config.stages.task_sft.data)
    assert [source.source for source in task.train] == ["task.jsonl"]
    assert (task.test, task.limit, task.validation_share) == (None, None, 0.2)
    assert (task.max_prompt_tokens, task.template) == (77, "alpaca") and config.data.test == "test.jsonl"
