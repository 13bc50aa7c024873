import json

import pytest

from minirl.training.log import MetricsLog, Stopwatch


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_records_are_lines_and_the_listener_hears_them(tmp_path):
    heard = []
    log = MetricsLog(tmp_path / "deep" / "metrics.jsonl", "distill", "iteration", listener=heard.append)
    log.write(0, {"loss/total": 1.5})
    log.write(1, {"loss/total": 0.5})
    assert records(log.path) == heard == [{"stage": "distill", "iteration": n, "loss/total": v} for n, v in ((0, 1.5), (1, 0.5))]


def test_a_resume_drops_what_will_be_written_again_and_only_that(tmp_path):
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


def test_the_line_that_a_kill_cut_is_dropped(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", "sft", "update")
    log.write(0, {"loss": {"nested": 1}})
    for cut in ('{"stage": "sft", "upd', '{"stage": "sft", "update": 0, "loss": {"nested": 1}'):
        with log.path.open("a") as file:
            file.write(cut)
        log.resume_at(1)
        assert records(log.path) == [{"stage": "sft", "update": 0, "loss": {"nested": 1}}]


def test_a_resume_that_is_killed_leaves_the_records(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path / "metrics.jsonl", "sft", "update")
    log.write(0, {})
    monkeypatch.setattr("os.replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        log.resume_at(0)
    assert records(log.path) == [{"stage": "sft", "update": 0}]


def test_nothing_to_resume(tmp_path):
    MetricsLog(tmp_path / "metrics.jsonl", "sft", "update").resume_at(3)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_the_stopwatch_adds_up_under_each_name_until_it_is_reset():
    watch, begun = Stopwatch(), []
    watch.listener = begun.append
    with watch("score"):
        pass
    once = watch.seconds["score"]
    with watch("score"), watch("update"):
        pass
    with pytest.raises(ValueError), watch("update"):
        raise ValueError
    assert begun == ["score", "score", "update", "update"]
    assert watch.seconds["score"] > once
    seconds = watch.reset()
    assert set(seconds) == {"score", "update"} and watch.seconds == {}
