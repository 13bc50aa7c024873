"""The settings of a comparison: what its options choose, what all contestants get, and which parts are finished."""

import json

import pytest
import yaml

from tests.benchmarks.pairs import PAIRS, make_job
from tests.benchmarks.side_by_side import UNCOMMITTED, describe, finished, parse


@pytest.mark.parametrize(
    ("options", "dtype", "weight"),
    [
        (["--pair", "tiny"], "float32", 8 / 64),  # TRL learns 64 responses in passes of 8
        (["--pair", "smollm2"], "bfloat16", 8 / 32),
        (["--pair", "tiny", "--contestants", "ours", "plain"], "float32", 1.0),
        (["--pair", "tiny", "--dtype", "bfloat16", "--policy-gradient-weight", "1"], "bfloat16", 1.0),
    ],
)
def test_dtype_and_weight_of_the_policy_gradient(options, dtype, weight):
    (arguments,) = parse(options)
    assert (arguments.dtype, arguments.policy_gradient_weight) == (dtype, weight)


def test_all_contestants_get_the_dtype_and_the_weight_and_the_report_says_both(tmp_path):
    (arguments,) = parse(["--pair", "smallest", "--dtype", "bfloat16", "--policy-gradient-weight", "0.125"])
    job = make_job("smallest", 2, 1, tmp_path, arguments.dtype, arguments.policy_gradient_weight)
    assert (job.dtype, job.policy_gradient_weight, len(job.updates)) == ("bfloat16", 0.125, 2)
    config = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert config["objective"]["policy_gradient_coefficient"] == 0.125
    assert [config[role]["dtype"] for role in ("teacher", "rollout", "learner")] == ["bfloat16"] * 3
    about = describe(arguments, job)
    assert "bfloat16" in about["work"] and "policy gradient weighted by 0.125" in about["work"] and "TRL" not in about["work"]
    assert "--dtype bfloat16 --policy-gradient-weight 0.125" in about["command"]


def test_the_report_says_that_the_weight_is_trls(tmp_path):
    (arguments,) = parse(["--pair", "tiny"])
    job = make_job("smallest", 1, 1, tmp_path, "float32", 1.0)
    assert describe(arguments, job)["work"].endswith("policy gradient weighted by 0.125, as TRL weights it")
    assert PAIRS["smallest"].trl_policy_gradient_weight == 1.0


def test_every_pair_is_measured_in_every_dtype():
    parts = parse(["--pair", "tiny", "smollm2", "--dtype", "bfloat16", "float32"])
    measured_parts = [(part.pair, part.dtype, part.policy_gradient_weight) for part in parts]
    assert measured_parts == [
        ("tiny", "bfloat16", 0.125),
        ("tiny", "float32", 0.125),
        ("smollm2", "bfloat16", 0.25),
        ("smollm2", "float32", 0.25),
    ]


ABOUT = {"commit": "abc", "date": "2026-01-02", "command": "all"}


@pytest.mark.parametrize(
    ("changes", "curves", "quality", "expected"),
    [
        ({"date": "2026-01-01"}, {"ours": []}, True, True),
        ({}, {}, False, True),
        ({}, {}, True, False),  # interrupted before the students were compared
        ({"commit": "abd"}, {}, False, False),
        ({"command": "one"}, {}, False, False),
        ({"commit": f"abc {UNCOMMITTED}"}, {}, False, False),
    ],
)
def test_a_part_is_finished_once(changes, curves, quality, expected, tmp_path):
    file = tmp_path / "side_by_side.json"
    assert not finished(file, ABOUT, quality)
    about = ABOUT | changes
    file.write_text(json.dumps({"about": about, "curves": curves}))
    assert finished(file, about if UNCOMMITTED in about["commit"] else ABOUT, quality) == expected
