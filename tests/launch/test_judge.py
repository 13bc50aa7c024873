"""The judge's client against a small server of our own, for what a real one does not do on demand: fail, be silent, count."""

import json
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from launch.cli import app
from launch.judge import KEY_VARIABLE, Judge, Replies, judge_run, pairs_of
from minirl.errors import InputError, RunError


class Server(ThreadingHTTPServer):
    """answer: from a prompt to a reply; fail: statuses for the first requests; silent: seconds before any answer."""

    daemon_threads = True

    def __init__(self, answer, fail=(), silent=0.0, status=200):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.fail, self.silent, self.status = answer, list(fail), silent, status
        self.requests, self.keys, self.under_way, self.most_under_way = [], set(), 0, 0
        self.lock = threading.Lock()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append(asked)
            server.keys.add(self.headers["Authorization"])
            status = server.fail.pop(0) if server.fail else server.status
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        time.sleep(server.silent)
        reply = server.answer(asked["messages"][0]["content"])
        message = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": reply}}
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": asked["model"], "choices": [message]}
        with server.lock:
            server.under_way -= 1
        self._send(status, body if status == 200 else {"error": {"message": "no such model"}})

    def _send(self, status, body):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("retry-after-ms", "1")
        with suppress(BrokenPipeError):  # who asked has waited long enough
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


def judge(server, **settings):
    return Judge(server.endpoint, "stub", **{"deadline": 5.0, "retries": 2} | settings)


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


def test_every_pair_is_asked_in_both_orders_once_and_the_second_run_asks_nothing(run):
    with serving(good_first) as server:
        _, files = judge_run(run, "distill", "sft", "test", judge(server))
        first = json.loads(files[0].read_text())
        assert len(server.requests) == 10 and first["about"]["requests"] == 10
        assert first["summary"]["wins"] == 5 and first["summary"]["score_ratio"] == 450
        assert all(one["temperature"] == 0 and one["max_tokens"] == 256 and one["model"] == "stub" for one in server.requests)
        _, files = judge_run(run, "distill", "sft", "test", judge(server))
        again = json.loads(files[0].read_text())
        assert len(server.requests) == 10 and again["about"]["requests"] == 0 and again["about"]["replies"] == 10
        assert again["summary"] == first["summary"] and again["verdicts"] == first["verdicts"]
    text = files[1].read_text()
    assert "prompt_version" in text and "scores-1" in text and "stub" in text and "| better in both orders | 5 |" in text


@pytest.mark.parametrize("changed", [{"temperature": 0.5}, {"max_tokens": 9}, {"model": "another"}])
def test_other_settings_are_other_verdicts(run, changed):
    with serving(good_first) as server:
        replies = {"endpoint": server.endpoint, "model": "stub"}
        judge_run(run, "distill", "sft", "test", Judge(**replies))
        judge_run(run, "distill", "sft", "test", Judge(**replies | changed))
        assert len(server.requests) == 20


def test_the_reference_is_the_other_answer_where_none_is_named(run):
    with serving(good_first) as server:
        _, files = judge_run(run, "distill", "reference", "test", judge(server), prompts=2)
        asked = [one["messages"][0]["content"] for one in server.requests]  # in whatever order the threads came
        assert sorted(["bad reference 0" in text, "bad reference 1" in text] for text in asked) == [[False, True]] * 2 + [[True, False]] * 2
    assert json.loads(files[0].read_text())["summary"]["pairs"] == 2


def test_unreadable_replies_are_kept_counted_and_shown(run):
    with serving(lambda prompt: "no idea" if "Q3?" in prompt else good_first(prompt)) as server:
        _, files = judge_run(run, "distill", "sft", "test", judge(server))
        judge_run(run, "distill", "sft", "test", judge(server))
        assert len(server.requests) == 10
    found = json.loads(files[0].read_text())
    assert found["summary"]["unreadable_replies"] == 2 and found["summary"]["complete_pairs"] == 4
    assert found["verdicts"][3] == {"plain": None, "swapped": None} and "| unreadable replies | 2 |" in files[1].read_text()


def test_a_server_that_recovers_is_asked_again_and_one_that_does_not_ends_in_a_sentence(tmp_path):
    with serving(good_first, fail=[503, 500]) as server:
        assert Replies(judge(server, concurrency=1), tmp_path / "a.jsonl").to(["good bad"]) == ["9 2"]
        assert len(server.requests) == 3
    with serving(good_first, status=503) as server:
        with pytest.raises(RunError, match=r"still answered 503 at try 3 \(.*no such model.*\); .* again later"):
            Replies(judge(server, concurrency=1), tmp_path / "b.jsonl").to(["good bad"])
        assert len(server.requests) == 3


def test_silence_ends_at_the_deadline_and_what_was_answered_before_is_kept(run):
    with serving(good_first) as server:
        judge_run(run, "distill", "sft", "test", judge(server), prompts=3)
        server.silent = 2.0
        before = time.monotonic()
        with pytest.raises(RunError, match=r"did not answer within 0\.2 s, tried 2 times; .*kept"):
            judge_run(run, "distill", "sft", "test", judge(server, deadline=0.2, retries=1))
        assert time.monotonic() - before < 30
        server.silent = 0.0
        server.requests.clear()
        judge_run(run, "distill", "sft", "test", judge(server))
        assert len(server.requests) == 4


def test_nobody_there_is_one_sentence(tmp_path):
    with serving(good_first) as server:
        endpoint = server.endpoint
    with pytest.raises(RunError, match="cannot be reached, tried 1 times"):
        Replies(Judge(endpoint, "stub", deadline=2.0, retries=0), tmp_path / "replies.jsonl").to(["good bad"])


def test_a_refusal_is_not_tried_again(tmp_path):
    with serving(good_first, status=404) as server:
        with pytest.raises(InputError, match="refuses a request with 404 .*no such model.*check --model"):
            Replies(judge(server, concurrency=1), tmp_path / "replies.jsonl").to(["good bad"])
        assert len(server.requests) == 1


def test_no_more_requests_are_under_way_than_allowed(tmp_path):
    with serving(good_first, silent=0.05) as server:
        Replies(judge(server, concurrency=3), tmp_path / "replies.jsonl").to([f"good bad {i}" for i in range(12)])
        assert server.most_under_way == 3


def test_a_line_that_a_kill_cut_off_is_asked_again(tmp_path):
    file = tmp_path / "replies.jsonl"
    with serving(good_first) as server:
        Replies(judge(server), file).to(["good bad 1", "bad good 2"])
        file.write_text(file.read_text()[:-9])
        assert Replies(judge(server), file).to(["good bad 1", "bad good 2"]) == ["9 2", "2 9"]
        assert len(server.requests) == 3
        assert Replies(judge(server), file).to(["good bad 1", "bad good 2"]) == ["9 2", "2 9"] and len(server.requests) == 3


def test_the_key_comes_from_the_environment_and_is_written_nowhere(run, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "very-secret")
    with serving(good_first) as server:
        judge_run(run, "distill", "sft", "test", judge(server))
        assert server.keys == {"Bearer very-secret"}
    assert not any("very-secret" in path.read_text() for path in run.rglob("*") if path.is_file())


def test_what_cannot_be_compared_is_refused_in_a_sentence(run):
    with pytest.raises(InputError, match="against itself says nothing"):
        pairs_of(run, "sft", "sft", "test")
    with pytest.raises(InputError, match="distil.samples.jsonl is not there; the set test has samples of distill, sft"):
        pairs_of(run, "distil", "sft", "test")
    with pytest.raises(InputError, match="run the stage evaluate first"):
        pairs_of(run, "distill", "sft", "dolly")
    write_samples(run, "teacher", ["good"], ["another prompt"])
    with pytest.raises(InputError, match="sampled for different prompts"):
        pairs_of(run, "distill", "teacher", "test")
    with pytest.raises(InputError, match="there is no judge prompt scores-9; the versions are scores-1"):
        Judge("http://localhost/v1", "stub", prompt_version="scores-9")
    with pytest.raises(InputError, match="must be a URL such as"):
        Judge("localhost:8000", "stub")


def test_the_command_judges_and_prints_the_table(run, capsys):
    with serving(good_first) as server:
        arguments = ["judge", str(run), "--endpoint", server.endpoint, "--model", "stub", "--b", "sft"]
        app(arguments, standalone_mode=False)
    printed = capsys.readouterr().out
    assert "distill against sft on test" in printed and "better in both orders" in printed and "distill-sft.md" in printed
