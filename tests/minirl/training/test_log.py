"""The metrics log across resumes and kills, and the stopwatch."""

import json

import pytest

from minirl.training.log import MetricsLog, Stopwatch


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_records_are_lines_and_go_to_the_listener(tmp_path):
    received = []
    log = MetricsLog(tmp_path / "deep" / "metrics.jsonl", "distill", "iteration", listener=received.append)
    log.write(0, {"loss/total": 1.5})
    log.write(1, {"loss/total": 0.5})
    assert records(log.path) == received == [{"stage": "distill", "iteration": n, "loss/total": v} for n, v in ((0, 1.5), (1, 0.5))]


def test_a_resume_drops_exactly_the_records_that_will_be_written_again(tmp_path):
    file = tmp_path / "metrics.jsonl"
    sft, distill = MetricsLog(file, "sft", "update"), MetricsLog(file, "distill", "iteration")
    for number in range(3):
        sft.write(number, {"x": number})
    for number in range(4):
        distill.write(number, {"x": number})
        distill.write(number, {"eval/rouge_l": number})
    distill.resume_at(2)
    assert [r["update"] for r in records(file) if r["stage"] == "sft"] == [0, 1, 2]
    assert [(r["iteration"], "x" in r) for r in records(file) if r["stage"] == "distill"] == [(0, True), (0, False), (1, True), (1, False)]


def test_a_line_that_a_kill_truncated_is_dropped(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", "sft", "update")
    log.write(0, {"loss": {"nested": 1}})
    for truncated in ('{"stage": "sft", "upd', '{"stage": "sft", "update": 0, "loss": {"nested": 1}'):
        with log.path.open("a") as file:
            file.write(truncated)
        log.resume_at(1)
        assert records(log.path) == [{"stage": "sft", "update": 0, "loss": {"nested": 1}}]


def test_a_killed_resume_leaves_the_records(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path / "metrics.jsonl", "sft", "update")
    log.write(0, {})
    monkeypatch.setattr("os.replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        log.resume_at(0)
    assert records(log.path) == [{"stage": "sft", "update": 0}]


def test_a_resume_without_a_log_creates_none(tmp_path):
    MetricsLog(tmp_path / "metrics.jsonl", "sft", "update").resume_at(3)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_the_stopwatch_adds_up_under_each_name_until_it_is_reset():
    stopwatch, started = Stopwatch(), []
    stopwatch.listener = started.append
    with stopwatch("score"):
        pass
    first_seconds = stopwatch.seconds["score"]
    with stopwatch("score"), stopwatch("update"):
        pass
    with pytest.raises(ValueError), stopwatch("update"):
        raise ValueError
    assert started == ["score", "score", "update", "update"]
    assert stopwatch.seconds["score"] > first_seconds
    seconds = stopwatch.reset()
    assert set(seconds) == {"score", "update"} and stopwatch.seconds == {}
