"""The smallest side-by-side comparison: minillm-ray and the plain loop, one timed update each. Speed is not asserted."""

import json
import os
import subprocess
import sys

import pytest

from minirl.bench.machine import vector_instructions
from tests.benchmarks.contestants import ROOT
from tests.deadlines import deadline

pytestmark = pytest.mark.slow


def test_contestants_take_updates_on_the_same_prompts_and_are_evaluated_alike(tmp_path):
    options = ["--pair", "smallest", "--steps", "1", "--contestants", "ours", "plain", "--quality", "2", "--quality-points", "1"]
    command = [sys.executable, "-m", "tests.benchmarks.side_by_side", *options, "--quality-prompts", "4", "--out", str(tmp_path)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=deadline(60))
    assert ended.returncode == 0, ended.stderr[-3000:]
    report = json.loads((tmp_path / "smallest-float32" / "side_by_side.json").read_text())
    assert list(report["figures"]) == ["ours", "plain"]
    assert report["about"]["instructions"] == " ".join(vector_instructions())
    for result in report["figures"].values():
        (update,) = result["turns"]
        assert update["seconds"] > 0 and result["peak_bytes"] > 50e6
        assert update["worked"]["samples"] == 8
        assert 8 <= update["worked"]["response_tokens"] <= 64
    ours, plain = report["curves"]["ours"], report["curves"]["plain"]
    assert ours[0] == plain[0] and [point["updates"] for point in ours] == [0, 2]
    assert ours[1]["reverse_kl"] != ours[0]["reverse_kl"] != plain[1]["reverse_kl"]  # both have learnt
    text = (tmp_path / "smallest-float32" / "side_by_side.md").read_text()
    assert "| ours / plain |" in text and "seconds to" in text
    assert (tmp_path / "smallest-float32" / "side_by_side.png").stat().st_size > 0
