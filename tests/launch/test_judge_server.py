"""The real command `minirl judge` with the quickstart's teacher behind vLLM's OpenAI-compatible server.

The verdicts of so small a model mean nothing. The test shows that requests arrive in both orders, and that replies are counted and stored.
"""

import json
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from minirl.data.embedded.assets import materialise_teacher
from minirl.evaluation.llm_judge import LATEST
from tests.deadlines import deadline, wait_until
from tests.launch.test_judge import write_samples

pytestmark = pytest.mark.slow
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "KMP_BLOCKTIME": "0"}
NAME, QUESTIONS = "smollm2", ["What is the capital of France?", "Name a color.", "How much is 2 plus 2?"]


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    teacher = materialise_teacher(folder / "teacher")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--model", teacher, "--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(port)]
    arguments += ["--max-model-len", "768", "--max-num-seqs", "8", "--enforce-eager"]
    with (folder / "log.txt").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments],
            stdout=log, stderr=subprocess.STDOUT, env=os.environ | ENVIRONMENT,
        )  # fmt: skip
    try:
        _wait_until_healthy(server, port, folder / "log.txt")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        _end(server)


def _wait_until_healthy(server: subprocess.Popen, port: int, log: Path) -> None:
    def healthy() -> bool:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return True
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    assert wait_until(healthy, 40), f"the server did not start in time: {log.read_text()[-3000:]}"


def _end(server: subprocess.Popen) -> None:
    """Stop the server and its children: the engine is a child process of the server."""
    processes = [*psutil.Process(server.pid).children(recursive=True), server] if server.poll() is None else []
    server.terminate()
    try:
        server.wait(deadline(6))
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait(deadline(6))
    for process in processes[:-1]:
        if process.is_running():
            process.kill()


def served(endpoint: str) -> int:
    """Number of requests that the server has finished, from its metrics."""
    with urllib.request.urlopen(endpoint.replace("/v1", "/metrics"), timeout=deadline(3)) as answer:
        counts = re.findall(r"^vllm:request_success_total\{[^}]*\} ([0-9.]+)", answer.read().decode(), re.MULTILINE)
    return int(sum(map(float, counts)))


def judge(run: Path, endpoint: str, *options: str) -> tuple[dict, str]:
    command = [str(Path(sys.executable).with_name("minirl")), "judge", str(run), "--endpoint", endpoint, "--model", NAME]
    process = subprocess.run(
        [*command, "--b", "sft", "--max-tokens", "12", *options], capture_output=True, text=True, timeout=deadline(30), check=False
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return json.loads((run / "judge" / NAME / "test-distill-sft.json").read_text()), process.stdout


def test_a_real_server_gets_every_pair_in_both_orders_once(endpoint, tmp_path):
    write_samples(tmp_path, "distill", ["Paris.", "Blue.", "4"], QUESTIONS)
    write_samples(tmp_path, "sft", ["I do not know.", "A color.", "The answer is 22."], QUESTIONS)
    result, printed = judge(tmp_path, endpoint)
    about, summary = result["about"], result["summary"]
    assert about["model"] == NAME and about["prompt_version"] == LATEST and about["requests"] == about["replies"] == 6
    assert served(endpoint) == 6
    replies = [json.loads(line)["reply"] for line in (tmp_path / "judge" / "replies.jsonl").read_text().splitlines() if line]
    assert len(replies) == 6 and all(replies)
    unreadable = sum(scores is None for verdict in result["verdicts"] for scores in verdict.values())
    assert summary["unreadable_replies"] == unreadable and summary["pairs"] == 3
    assert summary["complete_pairs"] == sum(None not in verdict.values() for verdict in result["verdicts"])
    assert "distill against sft on test" in printed

    again, _ = judge(tmp_path, endpoint)
    assert again["about"]["requests"] == 0 and served(endpoint) == 6
    assert again["verdicts"] == result["verdicts"] and again["summary"] == summary


def test_a_model_that_is_not_served_is_one_message(endpoint, tmp_path):
    write_samples(tmp_path, "distill", ["Paris."], QUESTIONS[:1])
    command = [str(Path(sys.executable).with_name("minirl")), "judge", str(tmp_path), "--endpoint", endpoint, "--model", "another"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=deadline(12), check=False)
    assert process.returncode == 2 and "refuses a request with 404" in process.stderr and "check --model" in process.stderr
