"""`dtype: auto`: chosen once from what the run's devices compute natively, recorded, and kept by a resume on another machine."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml

from actors.groups.nodes import Node
from actors.node_facts import NodeFacts, cpu_has_bfloat16
from launch import dtypes
from launch.cli import app
from launch.config import RunConfig
from launch.directory import CONFIG_RECORD
from launch.dtypes import ROLES, resolve_dtypes
from launch.experiment.runner import Experiment
from launch.run.stage import Stage
from minirl.config.experiment import ExperimentConfig
from minirl.config.reader import validate_config
from minirl.errors import InputError
from tests.launch.conftest import NO_CLUSTER

OLD_CPU, NEW_CPU = {"avx512_f": True, "avx512_bf16": False}, {"avx512_f": True, "avx512_bf16": True}
OLD, NEW = "because a CPU of the run has no instructions for bfloat16", "because every CPU of the run computes bfloat16 natively"


@pytest.fixture(autouse=True)
def driver_alone(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def machine(monkeypatch):
    """Makes this machine one whose CPU or GPUs have the given abilities. generations: compute capabilities of its GPUs."""

    def become(capabilities: dict[str, bool], generations: tuple[int, ...] = ()) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
        monkeypatch.setattr("actors.node_facts._gpu_problem", lambda: None if generations else "torch is built for CPUs")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(generations))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda gpu: (generations[gpu], 0))

    return become


def run_config(experiment, directory: Path, scores: str = "auto", **dtype_of) -> RunConfig:
    """The tiny experiment with the given dtypes, `auto` for the other roles."""
    settings = json.loads(json.dumps(experiment.settings)) | {"directory": str(directory)}
    settings["teacher"]["scores"] = scores
    for role in ROLES:
        settings[role].pop("dtype", None)
        settings[role] |= {"dtype": dtype_of[role]} if role in dtype_of else {}
    return validate_config(RunConfig, settings)


def chosen(config: RunConfig) -> list[str]:
    return [getattr(config, role).dtype for role in ROLES]


@pytest.mark.parametrize(
    ("capabilities", "generations", "dtype", "reason"),
    [
        (OLD_CPU, (), "float32", OLD),
        (NEW_CPU, (), "bfloat16", NEW),
        ({"architecture": "aarch64", "bf16": True}, (), "bfloat16", NEW),
        (OLD_CPU, (8, 9), "bfloat16", "because every GPU of the run computes bfloat16 natively"),
        (NEW_CPU, (9, 7), "float32", "because a GPU of the run has no instructions for bfloat16"),
    ],
)
def test_auto_is_what_the_devices_compute_natively(experiment, tmp_path, machine, capabilities, generations, dtype, reason):
    machine(capabilities, generations)
    config, line = resolve_dtypes(run_config(experiment, tmp_path), tmp_path)
    assert chosen(config) == [dtype] * 3
    assert line == f"dtype: rollout {dtype}, teacher {dtype}, learner {dtype}, {reason}"


def test_a_configured_dtype_stays(experiment, tmp_path, machine):
    machine(OLD_CPU)
    config, line = resolve_dtypes(run_config(experiment, tmp_path, learner="bfloat16"), tmp_path)
    assert chosen(config) == ["float32", "float32", "bfloat16"] and "learner" not in line
    named = run_config(experiment, tmp_path, **dict.fromkeys(ROLES, "bfloat16"))
    assert resolve_dtypes(named, tmp_path) == (named, None)


def test_a_run_that_goes_on_elsewhere_keeps_its_dtype(experiment, tmp_path, machine):
    machine(OLD_CPU)
    resolve_dtypes(run_config(experiment, tmp_path), tmp_path)
    machine(NEW_CPU)
    config, line = resolve_dtypes(run_config(experiment, tmp_path), tmp_path)
    assert chosen(config) == ["float32"] * 3
    assert line == f"dtype: rollout float32, teacher float32, learner float32, as {tmp_path}/dtype.json records"


def test_a_run_that_started_with_a_dtype_in_its_config_goes_on_with_it(experiment, tmp_path, machine):
    """A run of an earlier version too: its record holds what was the default then."""
    machine(OLD_CPU)
    named = run_config(experiment, tmp_path, **dict.fromkeys(ROLES, "bfloat16"))
    (tmp_path / CONFIG_RECORD).write_text(json.dumps(named.model_dump()))
    automatic = run_config(experiment, tmp_path)
    (tmp_path / "sft").mkdir()
    config, line = resolve_dtypes(automatic, tmp_path)
    assert chosen(config) == ["bfloat16"] * 3 and line.endswith(f", as {tmp_path}/config.json records")


def test_scores_out_of_sampling_need_one_dtype_after_the_choice_too(experiment, tmp_path):
    (tmp_path / "dtype.json").write_text(json.dumps({"rollout": "float32", "teacher": "bfloat16", "learner": "float32"}))
    with pytest.raises(InputError, match="from_sampling is impossible, because teacher.dtype is bfloat16 and rollout.dtype float32"):
        resolve_dtypes(run_config(experiment, tmp_path, scores="from_sampling"), tmp_path)
    assert chosen(resolve_dtypes(run_config(experiment, tmp_path), tmp_path)[0]) == ["float32", "bfloat16", "float32"]


def test_a_record_that_is_none_is_refused(experiment, tmp_path):
    for text in ("{", '{"rollout": "auto"}', "[]"):
        (tmp_path / "dtype.json").write_text(text)
        with pytest.raises(InputError, match="dtype.json is not the record of a run's dtypes; delete it"):
            resolve_dtypes(run_config(experiment, tmp_path), tmp_path)


def test_a_device_that_is_not_there_is_refused_before_anything_is_recorded(experiment, tmp_path, machine):
    machine(NEW_CPU)
    config = run_config(experiment, tmp_path)
    config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"device": "cuda"})})
    with pytest.raises(InputError, match=r"no GPU \(this machine: torch is built for CPUs\)"):
        resolve_dtypes(config, tmp_path)
    assert not (tmp_path / "dtype.json").exists()


def test_the_command_says_it_in_one_line_and_records_the_resolved_config(experiment, tmp_path, machine, monkeypatch, capsys):
    settings = run_config(experiment, tmp_path / "run").model_dump(exclude_unset=True)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings | {"stages": {"sft": settings["stages"]["sft"]}}))
    monkeypatch.setattr("launch.run.stages.Recipe.run", lambda recipe: None)
    for capabilities, reason in ((OLD_CPU, OLD), (NEW_CPU, "dtype.json records")):
        machine(capabilities)
        app(["run", str(tmp_path / "config.yaml")], standalone_mode=False)
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "dtype" in line]
        assert line.startswith("dtype: rollout float32, teacher float32, learner float32, ") and line.endswith(reason)
        recorded = json.loads((tmp_path / "run" / CONFIG_RECORD).read_text())
        assert [recorded[role]["dtype"] for role in ROLES] == ["float32"] * 3


def test_all_runs_of_an_experiment_have_the_dtype_of_its_first_start(experiment, tmp_path, machine):
    settings = json.loads(json.dumps(experiment.settings))
    run = {key: value for key, value in settings.items() if key not in ("directory", "seed", "stages")}
    del run["learner"]["dtype"], run["rollout"]["dtype"]
    sft = {"learning_rate": 1e-3, "sequences_per_update": 4}
    rows = {"sft": {"about": "SFT", "seeds": [1], "settings": {"stages": {"sft": sft}}}}
    rows["wide"] = {"about": "wide", "seeds": [1], "settings": {"learner": {"dtype": "bfloat16"}, "stages": {"sft": sft}}}
    about = {"directory": str(tmp_path), "run": run, "common": {"sft": sft}, "baseline": "sft", "rows": rows}
    for capabilities in (OLD_CPU, NEW_CPU):
        machine(capabilities)
        comparison = Experiment(validate_config(ExperimentConfig, about), None)
        assert chosen(comparison.common) == ["float32"] * 3
        assert [chosen(each.config) for each in comparison.runs([])] == [["float32"] * 3, ["float32", "float32", "bfloat16"]]
        assert "learner float32" in comparison.dtype_line


class Loop:
    finished, position = False, 1

    def load_state_dict(self, state):
        self.loaded = state


class Prepared:
    def __init__(self, config: RunConfig, directory: Path):
        self.config, self.directory = config, directory


class Listener:
    def record(self, record): ...


@pytest.mark.parametrize(("change", "refused"), [({}, None), ({"learner": "bfloat16"}, "learner"), ({"rollout": "bfloat16"}, None)])
def test_a_stage_resumes_only_in_the_dtypes_of_its_own_roles(experiment, tmp_path, change, refused):
    """The optimizer's state of another dtype has another layout. A stage without rollouts does not depend on theirs."""

    def stage(**dtype_of) -> Stage:
        config = run_config(experiment, tmp_path, **(dict.fromkeys(ROLES, "float32") | dtype_of))
        return Stage(Prepared(config, tmp_path), Listener(), "sft", "update", "weights", ("learner",))

    layout = {"workers": 2, "zero_stage": 2}
    state = {"driver": {}, "learner": layout, "dtype": {"learner": "float32"}, "started_from": "weights"}
    resumed = stage(**change)
    resumed.loop = Loop()
    if refused is None:
        resumed._load(state)
        assert resumed.loop.loaded == {}
    else:
        with pytest.raises(InputError, match="the checkpoint was written with learner.dtype = float32; set that to resume"):
            resumed._load(state)
    del state["dtype"]  # the checkpoint of an earlier version
    resumed._load(state)


def test_every_node_of_a_cluster_is_asked(experiment, tmp_path, monkeypatch):
    """At RAY_ADDRESS the driver's own machine says nothing about the nodes."""

    def nodes(*natives: tuple[str, ...]) -> list[Node]:
        return [Node(str(i), f"node {i}", 0, NodeFacts(0, None, frozenset(native), (0,), 1)) for i, native in enumerate(natives)]

    monkeypatch.setenv("RAY_ADDRESS", "nowhere:1")
    monkeypatch.setattr(dtypes, "cluster", lambda *sizes: nullcontext())
    for natives, expected in (((("cpu",), ()), "float32"), ((("cpu",), ("cpu",)), "bfloat16")):
        monkeypatch.setattr(dtypes, "usable_nodes", lambda timeout_s, natives=natives: nodes(*natives))
        directory = tmp_path / expected
        assert chosen(resolve_dtypes(run_config(experiment, directory), directory)[0]) == [expected] * 3


@pytest.mark.slow
def test_a_real_run_whose_roles_compute_at_the_same_time_and_its_resume(experiment, start):
    """The real command on this machine's own dtype, with the cores of the node divided among the roles (`max_staleness`)."""
    settings = run_config(experiment, experiment.root / "auto").model_dump(exclude_unset=True)
    distill = settings["stages"]["distill"] | {"iterations": 2, "max_staleness": 1, "updates_per_epoch": 1}
    changes = {role: settings[role] for role in ROLES}
    file = experiment.config("auto", **changes, stages={"distill": distill}, deterministic=False)
    run = start(file)
    assert run.wait() == 0, run.text
    native = "bfloat16" if cpu_has_bfloat16() else "float32"
    assert f"dtype: rollout {native}, teacher {native}, learner {native}, because" in run.text
    assert json.loads((experiment.root / "auto" / "dtype.json").read_text()) == dict.fromkeys(ROLES, native)
    other = {"float32": "bfloat16", "bfloat16": "float32"}[native]
    again = start(file, f"rollout.dtype={other}", "stages.distill.iterations=3", cluster=NO_CLUSTER)
    assert again.wait() == 2
    assert f"the checkpoint was written with rollout.dtype = {native}; set that to resume" in again.text
