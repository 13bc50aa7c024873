"""The settings of a comparison: what its options choose, and what all contestants get."""

import pytest
import yaml

from tests.benchmarks.pairs import PAIRS, make_job
from tests.benchmarks.side_by_side import describe, parse


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
    arguments = parse(options)
    assert (arguments.dtype, arguments.policy_gradient_weight) == (dtype, weight)


def test_all_contestants_get_the_dtype_and_the_weight_and_the_report_says_both(tmp_path):
    arguments = parse(["--pair", "smallest", "--dtype", "bfloat16", "--policy-gradient-weight", "0.125"])
    job = make_job("smallest", 2, 1, tmp_path, arguments.dtype, arguments.policy_gradient_weight)
    assert (job.dtype, job.policy_gradient_weight, len(job.updates)) == ("bfloat16", 0.125, 2)
    config = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert config["objective"]["policy_gradient_coefficient"] == 0.125
    assert [config[role]["dtype"] for role in ("teacher", "rollout", "learner")] == ["bfloat16"] * 3
    about = describe(arguments, job)
    assert "bfloat16" in about["work"] and "policy gradient weighted by 0.125" in about["work"] and "TRL" not in about["work"]
    assert "--dtype bfloat16 --policy-gradient-weight 0.125" in about["command"]


def test_the_report_says_that_the_weight_is_trls(tmp_path):
    arguments = parse(["--pair", "tiny"])
    job = make_job("smallest", 1, 1, tmp_path, "float32", 1.0)
    assert describe(arguments, job)["work"].endswith("policy gradient weighted by 0.125, as TRL weights it")
    assert PAIRS["smallest"].trl_policy_gradient_weight == 1.0
