"""The judge client against a small test server that fails, stays silent and counts requests on demand."""

import json
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from launch.cli import app
from launch.judge import KEY_VARIABLE, JudgeClient, JudgeSettings, judge_run, pairs_of
from minirl.errors import InputError, RunError
from tests.deadlines import deadline


class Server(ThreadingHTTPServer):
    """answer: maps a prompt to a reply; fail: HTTP statuses of the first requests; silent: seconds before every answer."""

    daemon_threads = True

    def __init__(self, answer, fail=(), silent=0.0, status=200):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.fail, self.silent, self.status = answer, list(fail), silent, status
        self.requests, self.keys, self.in_flight, self.max_in_flight = [], set(), 0, 0
        self.lock = threading.Lock()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append(request)
            server.keys.add(self.headers["Authorization"])
            status = server.fail.pop(0) if server.fail else server.status
            server.in_flight += 1
            server.max_in_flight = max(server.max_in_flight, server.in_flight)
        time.sleep(server.silent)
        reply = server.answer(request["messages"][0]["content"])
        message = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": reply}}
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": request["model"], "choices": [message]}
        with server.lock:
            server.in_flight -= 1
        self._send(status, body if status == 200 else {"error": {"message": "no such model"}})

    def _send(self, status, body):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("retry-after-ms", "1")
        with suppress(BrokenPipeError):  # the client may have timed out
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def serving(*arguments, **settings):
    with Server(*arguments, **settings) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


def good_first(prompt):
    return "9 2" if prompt.index("good") < prompt.index("bad") else "2 9"


def judge_settings(server, **settings):
    return JudgeSettings(server.endpoint, "stub", **{"deadline": deadline(3), "retries": 2} | settings)


def write_samples(run, name, responses, prompts=None, on_set="test"):
    folder = run / "evaluate" / on_set
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"question": prompt, "prompt": f"<user>{prompt}</user>", "response": response, "references": [f"bad reference {number}", "another"]}
        for number, (prompt, response) in enumerate(zip(prompts or [f"Q{i}?" for i in range(len(responses))], responses, strict=True))
    ]
    (folder / f"{name}.samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(tmp_path):
    write_samples(tmp_path, "distill", [f"good {i}" for i in range(5)])
    write_samples(tmp_path, "sft", [f"bad {i}" for i in range(5)])
    return tmp_path


def test_every_pair_is_judged_in_both_orders_once_and_a_second_run_sends_no_requests(run):
    with serving(good_first) as server:
        _, files = judge_run(run, "distill", "sft", "test", judge_settings(server))
        first = json.loads(files[0].read_text())
        assert len(server.requests) == 10 and first["about"]["requests"] == 10
        assert first["summary"]["wins"] == 5 and first["summary"]["score_ratio"] == 450
        assert all(r["temperature"] == 0 and r["max_tokens"] == 256 and r["model"] == "stub" for r in server.requests)
        _, files = judge_run(run, "distill", "sft", "test", judge_settings(server))
        again = json.loads(files[0].read_text())
        assert len(server.requests) == 10 and again["about"]["requests"] == 0 and again["about"]["replies"] == 10
        assert again["summary"] == first["summary"] and again["verdicts"] == first["verdicts"]
    text = files[1].read_text()
    assert "prompt_version" in text and "scores-1" in text and "stub" in text and "| better in both orders | 5 |" in text


@pytest.mark.parametrize("changed", [{"temperature": 0.5}, {"max_tokens": 9}, {"model": "another"}])
def test_other_settings_need_new_replies(run, changed):
    with serving(good_first) as server:
        settings = {"endpoint": server.endpoint, "model": "stub"}
        judge_run(run, "distill", "sft", "test", JudgeSettings(**settings))
        judge_run(run, "distill", "sft", "test", JudgeSettings(**settings | changed))
        assert len(server.requests) == 20


def test_answers_can_be_compared_with_the_reference(run):
    with serving(good_first) as server:
        _, files = judge_run(run, "distill", "reference", "test", judge_settings(server), prompts=2)
        prompts = [request["messages"][0]["content"] for request in server.requests]  # threads send them in any order
        shown = sorted(["bad reference 0" in prompt, "bad reference 1" in prompt] for prompt in prompts)
        assert shown == [[False, True]] * 2 + [[True, False]] * 2
    assert json.loads(files[0].read_text())["summary"]["pairs"] == 2


def test_unreadable_replies_are_stored_counted_and_shown(run):
    with serving(lambda prompt: "no idea" if "Q3?" in prompt else good_first(prompt)) as server:
        _, files = judge_run(run, "distill", "sft", "test", judge_settings(server))
        judge_run(run, "distill", "sft", "test", judge_settings(server))
        assert len(server.requests) == 10
    result = json.loads(files[0].read_text())
    assert result["summary"]["unreadable_replies"] == 2 and result["summary"]["complete_pairs"] == 4
    assert result["verdicts"][3] == {"plain": None, "swapped": None} and "| unreadable replies | 2 |" in files[1].read_text()


def test_failed_requests_are_retried_until_the_server_recovers_or_retries_end(tmp_path):
    with serving(good_first, fail=[503, 500]) as server:
        assert JudgeClient(judge_settings(server, concurrency=1), tmp_path / "a.jsonl").replies_to(["good bad"]) == ["9 2"]
        assert len(server.requests) == 3
    with serving(good_first, status=503) as server:
        with pytest.raises(RunError, match=r"still answered 503 at try 3 \(.*no such model.*\); .* again later"):
            JudgeClient(judge_settings(server, concurrency=1), tmp_path / "b.jsonl").replies_to(["good bad"])
        assert len(server.requests) == 3


def test_a_silent_server_ends_at_the_deadline_and_earlier_replies_are_kept(run):
    with serving(good_first) as server:
        judge_run(run, "distill", "sft", "test", judge_settings(server), prompts=3)
        server.silent = 2.0
        before = time.monotonic()
        with pytest.raises(RunError, match=r"did not answer within 0\.2 s, tried 2 times; .*kept"):
            judge_run(run, "distill", "sft", "test", judge_settings(server, deadline=0.2, retries=1))
        assert time.monotonic() - before < deadline(3)
        server.silent = 0.0
        server.requests.clear()
        judge_run(run, "distill", "sft", "test", judge_settings(server))
        assert len(server.requests) == 4


def test_an_unreachable_server_is_one_message(tmp_path):
    with serving(good_first) as server:
        endpoint = server.endpoint
    with pytest.raises(RunError, match="cannot be reached, tried 1 times"):
        JudgeClient(JudgeSettings(endpoint, "stub", deadline=deadline(1), retries=0), tmp_path / "replies.jsonl").replies_to(["good bad"])


def test_a_refused_request_is_not_retried(tmp_path):
    with serving(good_first, status=404) as server:
        with pytest.raises(InputError, match="refuses a request with 404 .*no such model.*check --model"):
            JudgeClient(judge_settings(server, concurrency=1), tmp_path / "replies.jsonl").replies_to(["good bad"])
        assert len(server.requests) == 1


def test_no_more_requests_are_under_way_than_allowed(tmp_path):
    with serving(good_first, silent=0.05) as server:
        JudgeClient(judge_settings(server, concurrency=3), tmp_path / "replies.jsonl").replies_to([f"good bad {i}" for i in range(12)])
        assert server.max_in_flight == 3


def test_a_reply_whose_line_a_kill_cut_off_is_requested_again(tmp_path):
    file = tmp_path / "replies.jsonl"
    with serving(good_first) as server:
        JudgeClient(judge_settings(server), file).replies_to(["good bad 1", "bad good 2"])
        file.write_text(file.read_text()[:-9])
        assert JudgeClient(judge_settings(server), file).replies_to(["good bad 1", "bad good 2"]) == ["9 2", "2 9"]
        assert len(server.requests) == 3
        assert JudgeClient(judge_settings(server), file).replies_to(["good bad 1", "bad good 2"]) == ["9 2", "2 9"]
        assert len(server.requests) == 3, "the second client finds both replies in the file"


def test_the_key_comes_from_the_environment_and_is_written_nowhere(run, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "very-secret")
    with serving(good_first) as server:
        judge_run(run, "distill", "sft", "test", judge_settings(server))
        assert server.keys == {"Bearer very-secret"}
    assert not any("very-secret" in path.read_text() for path in run.rglob("*") if path.is_file())


def test_models_that_cannot_be_compared_are_refused(run):
    with pytest.raises(InputError, match="sft cannot be compared with itself"):
        pairs_of(run, "sft", "sft", "test")
    with pytest.raises(InputError, match="distil.samples.jsonl is not there; the set test has samples of distill, sft"):
        pairs_of(run, "distil", "sft", "test")
    with pytest.raises(InputError, match="run the stage evaluate, or name another --set"):
        pairs_of(run, "distill", "sft", "dolly")
    write_samples(run, "teacher", ["good"], ["another prompt"])
    with pytest.raises(InputError, match="sampled for different prompts"):
        pairs_of(run, "distill", "teacher", "test")
    with pytest.raises(InputError, match="there is no judge prompt scores-9; the versions are scores-1"):
        JudgeSettings("http://localhost/v1", "stub", prompt_version="scores-9")
    with pytest.raises(InputError, match="must be a URL such as"):
        JudgeSettings("localhost:8000", "stub")


def test_the_command_judges_and_prints_the_table(run, capsys):
    with serving(good_first) as server:
        arguments = ["judge", str(run), "--endpoint", server.endpoint, "--model", "stub", "--b", "sft"]
        app(arguments, standalone_mode=False)
    printed = capsys.readouterr().out
    assert "distill against sft on test" in printed and "better in both orders" in printed and "distill-sft.md" in printed
