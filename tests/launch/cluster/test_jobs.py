"""Jobs through the real command on two raylets that require a token: submit, follow, stop, go on."""

import json
import time

import pytest

from tests.deadlines import wait_until
from tests.launch.conftest import newest

pytestmark = pytest.mark.slow

DISTILL = {"learning_rate": 1e-3, "iterations": 3000, "prompts_per_iteration": 8, "validate_every": 3000, "validation_prompts": 2}


def records(directory) -> list[dict]:
    return [record for record in map(json.loads, (directory / "metrics.jsonl").read_text().splitlines()) if "time/update" in record]


def test_a_run_is_submitted_stopped_and_submitted_again(experiment, client):
    directory = experiment.root / "job"
    config = experiment.config("job", stages={"distill": DISTILL | {"checkpoint_every": 3000}})
    began = time.monotonic()
    submitted = client("submit", config)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert f"the run writes to {directory}, which every node must see" in submitted.stdout
    assert "data: 90 records" in submitted.stdout and "WARNING" not in submitted.stderr
    assert wait_until(lambda: (directory / "metrics.jsonl").is_file() and len(records(directory)) > 1, 60)
    print(f"submit to first iterations: {time.monotonic() - began:.1f} s")

    again = client("submit", config)
    assert again.returncode == 2
    assert again.stderr == f"error: the job job-1 works in {directory}; wait for it, or end it with `minirl stop job-1`\n"
    status = client("status", "job-1")
    assert status.stdout.startswith("job-1: running; started 2") and ": loss " in status.stdout

    stopped = client("stop", "job-1")
    assert stopped.returncode == 0, stopped.stderr
    assert "interrupted; start the same command again to resume" in stopped.stdout and "job-1: stopped after" in stopped.stdout
    iterations = newest(directory)
    assert 0 < iterations < 3000 and iterations == len(records(directory)), "the checkpoint is not that of the last finished iteration"

    changed = client("submit", config, "stages.distill.iterations=" + str(iterations + 2), "--follow")
    assert changed.returncode == 0, changed.stdout + changed.stderr
    assert f"distill {iterations}: loss" in changed.stdout and f"distill {iterations - 1}: loss" not in changed.stdout
    assert [record["iteration"] for record in records(directory)] == list(range(iterations + 2))
    table = client("jobs").stdout
    assert "stopped" in next(line for line in table.splitlines() if line.strip().startswith("job-1"))
    assert "succeeded" in next(line for line in table.splitlines() if line.strip().startswith("job-2"))
    assert client("stop", "job-2").stdout == "job-2 is over already: succeeded\n"


def test_the_address_that_is_given_is_asked_whatever_the_environment_says(nodes, client):
    """KubeRay sets RAY_ADDRESS in every pod, and Ray's own client would prefer it."""
    elsewhere = {"RAY_ADDRESS": "http://127.0.0.1:1", "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1"}
    assert client("jobs", environment=nodes.environment | elsewhere).returncode == 0


def test_a_job_that_the_driver_refuses_ends_submit_with_its_sentence_and_exit_code(experiment, client):
    teacher = experiment.settings["teacher"] | {"model": str(experiment.root / "nowhere")}
    refused = client("submit", experiment.config("refused", teacher=teacher))
    assert refused.returncode == 2
    assert f"error: teacher.model: {experiment.root}/nowhere is not a model: there is no such directory; check the path" in refused.stdout
    assert client("logs", "refused-1", "--follow").returncode == 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"RAY_AUTH_TOKEN": "0" * 64}, "refuses the token that this command found"),
        ({"RAY_AUTH_MODE": None, "RAY_AUTH_TOKEN": None}, "requires a token and none is set; set RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_MODE": None}, None),
    ],
)
def test_a_token_that_is_wrong_missing_or_right(changes, sentence, nodes, client, tmp_path):
    environment = {**nodes.environment, "HOME": str(tmp_path)} | changes
    result = client("jobs", environment={name: value for name, value in environment.items() if value is not None})
    assert nodes.environment["RAY_AUTH_TOKEN"] not in result.stdout + result.stderr
    if sentence is None:
        assert result.returncode == 0, result.stderr
    else:
        assert result.returncode == 2 and sentence in result.stderr and len(result.stderr.splitlines()) == 1
