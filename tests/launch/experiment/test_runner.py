"""The experiment with a fake command: the config of each run, and that only missing runs start."""

import json
from pathlib import Path

import numpy as np
import pytest

from launch.experiment.runner import Experiment, merged, work_of
from minirl.config.experiment import ExperimentConfig
from minirl.config.reader import validate_config
from minirl.errors import InputError, RunError
from tests.tiny import tiny_model

STAGE = {"learning_rate": 1e-3}
ROWS = {
    "sft": {"about": "SFT", "seeds": [1, 2], "settings": {"stages": {"sft": STAGE}}},
    "paper": {
        "about": "MiniLLM",
        "seeds": [1],
        "settings": {"stages": {"distill": STAGE | {"iterations": 2}}, "rollout": {"teacher_share": 0.2}},
    },
}


class SilentObserver:
    def stage_started(self, *_): ...
    def doing(self, *_): ...
    def record(self, *_): ...
    def progressed(self, *_): ...
    def warn(self, *_): ...


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: tiny_model(root / name, seed=seed) for seed, name in enumerate(("teacher", "student"))}


def settings(tmp_path, models, **changes) -> dict:
    run = {
        "teacher": {"model": models["teacher"], "dtype": "float32"},
        "student": {"model": models["student"]},
        "data": {"train": "records.jsonl"},
        "objective": {"pretrain_coefficient": 0.0},
    }
    return {
        "directory": str(tmp_path),
        "run": run,
        "common": {"sft_teacher": STAGE, "sft": STAGE},
        "baseline": "sft",
        "rows": ROWS,
    } | changes


def make(tmp_path, models, **changes) -> tuple[Experiment, list]:
    """The experiment, and the list of (verb, config) of its commands; each fake command writes the models and scores of a real one."""
    experiment = Experiment(validate_config(ExperimentConfig, settings(tmp_path, models, **changes)), SilentObserver())
    started = []

    def command(verb, config, *options):
        started.append((verb, config))
        directory = Path(config.directory)
        if verb == "evaluate":
            out = Path(options[-1])
            named_models = dict(option.split("=", 1) for option in options[1:-2:2])
            (out / "test").mkdir(parents=True, exist_ok=True)
            for name, model in named_models.items():
                assert Path(model).is_dir()
                scores = np.full((2, 3), float(len(name)))
                lengths = np.ones((2, 3), int)
                divergences = {} if config.stages.evaluate.no_repeat_ngram else {"own/reverse_kl": np.ones(6)}
                np.savez(out / "test" / f"{name}.npz", **{"rouge_l": scores, "lengths": lengths} | divergences)
        elif directory.name == "common":
            for stage, name in {"sft_teacher": "teacher", "sft": "student"}.items():
                target = directory / stage / "best"
                target.parent.mkdir(parents=True, exist_ok=True)
                if not target.exists():
                    target.symlink_to(models[name])
        else:
            (directory / list(config.stages.student_directories().values())[-1]).mkdir(parents=True)
            stage = list(config.stages.student_directories())[-1]
            (directory / stage / "checkpoints" / "7").mkdir(parents=True)
            (directory / "metrics.jsonl").write_text(json.dumps({"stage": stage, "learner/target_tokens": 7, "time/update": 2.0}) + "\n")

    experiment._command = command
    return experiment, started


def names(started) -> list[str]:
    return [f"{verb} {Path(config.directory).name}" for verb, config in started]


def test_every_row_starts_from_the_models_of_the_common_stages(tmp_path, models):
    experiment, started = make(tmp_path, models)
    experiment.run([])
    assert names(started) == ["run common", "run sft-1", "run paper-1", "run sft-2", "evaluate common"]
    configs = [config for _, config in started]
    for config in configs[1:-1]:
        assert config.teacher.model == str(tmp_path / "common" / "sft_teacher" / "best")
        assert config.student.model == str(tmp_path / "common" / "sft" / "best")
        assert config.teacher.dtype == "float32" and config.stages.sft_teacher is None
    assert [config.seed for config in configs] == [10, 1, 1, 2, 10]
    assert configs[2].rollout.teacher_share == 0.2 and configs[2].stages.sft is None
    assert configs[0].stages.evaluate is None and configs[-1].stages.evaluate is not None


def test_finished_rows_are_small_files_and_do_not_run_again(tmp_path, models):
    experiment, started = make(tmp_path, models)
    assert experiment.run(["paper"]) == []  # nothing to compare with yet
    assert names(started) == ["run common", "run paper-1", "evaluate common"]
    assert [file.name for file in (tmp_path / "runs" / "paper-1" / "distill").iterdir()] == ["best"], "checkpoints are deleted"
    row = json.loads((tmp_path / "rows" / "paper-1.json").read_text())
    assert (row["row"], row["seed"], row["target_tokens"], row["training_seconds"]) == ("paper", 1, 7, 2.0)
    checkpoints = tmp_path / "runs" / "paper-1" / "distill" / "checkpoints"
    checkpoints.mkdir()  # a kill between writing the row and deleting the checkpoints leaves them
    again, started = make(tmp_path, models)
    tables = again.run([])
    assert names(started) == ["run common", "run sft-1", "run sft-2", "evaluate common"]
    assert not checkpoints.exists()
    assert [row[0] for row in tables[0].rows] == ["SFT", "MiniLLM"]
    full = json.loads((tmp_path / "experiment.json").read_text())
    assert [row[:2] for row in full[0]["rows"]] == [["SFT", "2"], ["MiniLLM", "1"]]
    assert {file.name for file in tmp_path.glob("experiment.*")} == {"experiment.json", "experiment.md", "experiment.png"}


def test_students_sampled_with_blocked_ngrams_are_compared_by_rouge_l_alone(tmp_path, models):
    """KL is not measured on such samples."""
    experiment, _ = make(tmp_path, models, evaluate={"no_repeat_ngram": 6})
    (table,) = experiment.run([])
    assert table.columns == ("method", "Rouge-L", "diff.") and [row[0] for row in table.rows] == ["SFT", "MiniLLM"]
    assert "KL" not in (tmp_path / "experiment.md").read_text() and (tmp_path / "experiment.png").is_file()


def test_a_row_of_other_settings_is_not_finished(tmp_path, models):
    make(tmp_path, models)[0].run([])
    rows = ROWS | {"paper": ROWS["paper"] | {"settings": merged(ROWS["paper"]["settings"], {"rollout": {"teacher_share": 0.3}})}}
    changed, started = make(tmp_path, models, rows=rows)
    assert [run.name for run in changed.runs([]) if changed.finished_row(run)] == ["sft-1", "sft-2"]


def test_mistakes_are_reported_before_anything_runs(tmp_path, models):
    for changes, message in [
        ({"baseline": "none"}, "baseline: none is none of the rows sft, paper"),
        (
            {"rows": ROWS | {"paper": ROWS["paper"] | {"changes": "sft", "seeds": [1, 3]}}},
            r"rows.paper.changes: sft is no row with the seeds \[1, 3\]",
        ),
        ({"run": settings(tmp_path, models)["run"] | {"seed": 3}}, "run.seed is set by the experiment"),
    ]:
        with pytest.raises(InputError, match=message):
            make(tmp_path, models, **changes)
    wrong = ROWS | {"paper": ROWS["paper"] | {"settings": {"stages": {"distil": STAGE}}}}
    experiment, started = make(tmp_path, models, rows=wrong)
    with pytest.raises(InputError, match="did you mean distill"):
        experiment.run([])
    with pytest.raises(InputError, match="there is no row ppo; the rows are sft, paper"):
        make(tmp_path, models)[0].run(["ppo"])
    assert started == []


def test_a_finished_row_belongs_to_the_content_of_its_data(tmp_path, models, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records = tmp_path / "records.jsonl"
    records.write_text("1\n")
    experiment, _ = make(tmp_path, models)
    experiment.run([])
    (run,) = experiment.runs(["paper"])
    row = experiment.finished_row(run)
    assert row
    records.write_text("22\n")
    assert experiment.finished_row(run) is None
    (tmp_path / "rows" / "paper-1.json").write_text(json.dumps({key: value for key, value in row.items() if key != "content"}))
    assert experiment.finished_row(run)  # a row that an earlier version wrote


def test_a_run_that_fails_stops_the_experiment_with_one_message(tmp_path, models):
    experiment = Experiment(validate_config(ExperimentConfig, settings(tmp_path, models)), SilentObserver())
    with pytest.raises(RunError, match="ended with code 2; see .*run.log, which ends with: error: .*records.jsonl"):
        experiment._command("run", experiment.common)  # there is no records.jsonl
    assert "records.jsonl" in (tmp_path / "common" / "run.log").read_text()


def test_merging_goes_to_any_depth_and_lists_are_replaced():
    base = {"a": {"b": {"c": 1, "d": [1, 2]}, "e": 2}, "f": None}
    assert merged(base, {"a": {"b": {"d": [3]}}, "f": {"g": 1}}) == {"a": {"b": {"c": 1, "d": [3]}, "e": 2}, "f": {"g": 1}}
    assert base == {"a": {"b": {"c": 1, "d": [1, 2]}, "e": 2}, "f": None}


def test_target_tokens_come_from_the_last_record_of_each_stage():
    records = [
        {"stage": "sft", "learner/target_tokens": 5, "time/update": 1.0, "time/validate": 0.5},
        {"stage": "sft", "learner/target_tokens": 9, "time/update": 1.0},
        {"stage": "distill", "learner/target_tokens": 4, "rollout/response_tokens": 30, "time/update": 1.0, "time/iteration": 9.0},
        {"stage": "distill", "eval/rouge_l": 1.0},
    ]
    assert work_of(records) == {"target_tokens": 13, "sampled_tokens": 30, "training_seconds": 3.5}


def test_common_stages_may_be_a_list_in_another_order(tmp_path, models):
    experiment, _ = make(tmp_path, models, common=[{"kd": STAGE}, {"sft_teacher": STAGE}, {"sft": STAGE}])
    assert experiment.common.stages.in_order() == ["kd", "sft_teacher", "sft"]
    assert {run.config.student.model for run in experiment.runs([])} == {str(tmp_path / "common" / "sft" / "best")}
    with pytest.raises(InputError, match="^common = 3 does not fit"):
        make(tmp_path, models, common=3)
