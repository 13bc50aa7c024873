"""The profile of the learner's update: which part an operation belongs to, and the smallest form of the command."""

import json
import subprocess
import sys

import pytest
import torch
from torch.profiler import profile, record_function

from tests.benchmarks.contestants import ROOT
from tests.benchmarks.learner_profile import LOGITS, OTHER, OUTSIDE, PARTS, PRODUCTS, part_of, shares
from tests.deadlines import deadline


@pytest.fixture(scope="module")
def events():
    matrix = torch.randn(64, 64)
    with profile() as profiler:
        torch.relu(matrix)
        with record_function(LOGITS):
            matrix.exp()
            with record_function("inside"):
                matrix @ matrix
                matrix.log()
    return profiler.events()


def test_a_product_is_a_product_anywhere_and_other_work_belongs_to_its_label(events):
    parts = {event.name: part_of(event) for event in events}
    expected = {"aten::mm": PRODUCTS, "aten::exp": LOGITS, "aten::log": LOGITS, "inside": LOGITS, LOGITS: LOGITS, "aten::relu": OTHER}
    assert {name: parts[name] for name in expected} == expected


def test_the_parts_add_up_to_the_update(events):
    seconds = 2 * sum(event.self_cpu_time_total for event in events) / 1e6
    parts = shares(events, seconds)
    assert list(parts) == list(PARTS) and sum(parts.values()) == pytest.approx(1)
    assert parts[OUTSIDE] == pytest.approx(0.5) and all(parts[part] > 0 for part in (PRODUCTS, LOGITS, OTHER))


@pytest.mark.slow
def test_the_smallest_profile(tmp_path):
    options = ["--pair", "smallest", "--dtype", "float32", "--threads", "1", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "tests.benchmarks.learner_profile", *options]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=deadline(30))
    assert ended.returncode == 0, ended.stderr[-3000:]
    report = json.loads((tmp_path / "smallest-float32" / "learner_profile.json").read_text())
    assert sum(report["parts"].values()) == pytest.approx(1)
    assert all(report["parts"][part] > 0 for part in (PRODUCTS, LOGITS, "optimizer step", OTHER))
    # Everything that is needed is computed. Padding comes on top, and attention to tokens behind the causal mask.
    assert report["needed_flops"] <= report["product_flops"] < 1.5 * report["needed_flops"]
    assert "| needed FLOPs at that rate |" in ended.stdout
