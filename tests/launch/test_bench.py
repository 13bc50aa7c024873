"""`minirl bench` on the tiny experiment: it succeeds, and every promised figure is there and is a number."""

import json
import math
import os
import subprocess

import pytest
from matplotlib.image import imread

from launch.bench import Bench
from launch.config import RunConfig
from launch.prepare import prepare
from minirl.bench.efficiency import VERBS
from minirl.config.reader import read_config
from tests.deadlines import deadline
from tests.launch.conftest import COMMAND, VOCABULARY
from tests.tiny import tiny_model

pytestmark = pytest.mark.slow
MINIRL = COMMAND[0]
RATIOS = {"efficiency", "mixed", "learner", "chunked_kl", "publish", "publish_share", "driver_overhead"}


@pytest.fixture(scope="module")
def bench(experiment) -> tuple[str, dict]:
    """The command's output, and the JSON that it wrote."""
    command = [MINIRL, "bench", str(experiment.config("bench")), "--iterations=1"]
    environment = {**os.environ, "RAY_ADDRESS": "", "COLUMNS": "80"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=deadline(90), env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout, json.loads((experiment.root / "bench" / "bench" / "bench.json").read_text())


def test_every_ratio_is_a_positive_number(bench):
    ratios = bench[1]["ratios"]
    assert set(ratios) == RATIOS
    assert all(math.isfinite(ratio["value"]) and ratio["value"] > 0 for ratio in ratios.values()), ratios


def test_the_loop_and_the_roles_alone_were_measured(bench):
    measurements = bench[1]["measurements"]
    assert measurements["sharing"] == [["rollout", "learner"]] and len(measurements["iterations"]) == 1
    assert set(measurements["alone"]) == {"rollout", "learner", "plain", "mixed", "teacher_only"}
    assert all(work["seconds"] > 0 and work["tokens"] >= 12 for work in measurements["alone"].values()), measurements["alone"]
    assert {f"time/{verb}" for verb in VERBS} <= set(measurements["iterations"][0])
    assert all(measurements["iterations"][0][f"{role}/busy_seconds"] > 0 for role in ("rollout", "learner"))
    processes = {role: len(peaks) for role, peaks in measurements["memory"].items()}
    assert processes == {"driver": 1, "rollout": 2, "learner": 2}
    assert all(peak > 2**26 for peaks in measurements["memory"].values() for peak in peaks)


def test_every_device_has_rates(bench):
    report = bench[1]
    assert {role: rates["devices"] for role, rates in report["devices"].items()} == {"rollout": 2, "learner": 2}
    for rates in report["devices"].values():
        assert rates["tokens_per_second"] > 0 and rates["loop_tokens_per_second"] > 0
        assert 0 < rates["mfu"] < 1.5 and 1e8 < rates["matmul_flops"] < 1e15


def test_the_output_wraps_no_line_without_a_terminal_and_names_its_files(bench, experiment):
    text, report = bench
    directory = experiment.root / "bench" / "bench"
    assert report["bottleneck"] in " ".join(text.split()) and str(directory / "bench.md") in text
    lines = text.splitlines()
    for name, ratio in report["ratios"].items():
        assert any(f"{name}: {ratio['meaning']}" in line for line in lines), name
    assert f"**{report['bottleneck']}**" in (directory / "bench.md").read_text()
    assert imread(directory / "bench.png").shape[1] > 1000


def test_the_student_of_a_later_stage_is_not_measured(experiment):
    """`task_sft` starts from the student that `distill` left."""
    task = {"learning_rate": 1e-3, "data": {"train": str(experiment.root / "records.jsonl")}}
    (experiment.root / "later").mkdir()
    prepared = prepare(read_config(RunConfig, experiment.config("later", stages=experiment.settings["stages"] | {"task_sft": task}), []))
    for stage in ("sft", "distill", "task_sft"):
        tiny_model(prepared.directory / stage / "best", "gpt2", vocab=VOCABULARY)
    assert Bench(prepared, 1, None).student == str(prepared.directory / "sft" / "best")


def test_a_config_without_distillation_is_refused(experiment):
    command = [MINIRL, "bench", str(experiment.config("undistilled")), "stages.distill=null"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=deadline(12))
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith("error: bench measures the stage distill")
