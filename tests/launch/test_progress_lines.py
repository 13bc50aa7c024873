"""Progress of a job as lines: what is written is what a panel receives again, at the time at which it was written."""

import io
import json

import pytest

from launch.progress_lines import EVENT, METHODS, EventClock, LineBuffer, ProgressLines, replay

RECORD = {"stage": "distill", "iteration": 3, "loss/total": float("nan"), "time/update": 1.5}


class Recorder:
    """Records calls of every method, with the clock's time."""

    def __init__(self, clock):
        self.calls, self._clock = [], clock

    def __getattr__(self, name):
        return lambda *arguments: self.calls.append((name, self._clock(), arguments))


def test_a_panel_receives_every_report_again():
    stream, clock = io.StringIO(), EventClock()
    with ProgressLines(stream) as lines:
        lines.stage_started("distill", 40, 3, "iteration")
        lines.doing("distill", "sample")
        lines.record(RECORD)
        lines.progressed(4)
        lines.warn("distill", "the [disk] is\nnearly full")
    panel = Recorder(clock)
    written = stream.getvalue().splitlines()
    assert len(written) == 5 and all(line.startswith(EVENT) for line in written)
    assert [replay(line, panel, clock) for line in written] == [None] * 5
    assert [name for name, _, _ in panel.calls] == ["stage_started", "doing", "record", "progressed", "warn"]
    assert set(METHODS) == {name for name, _, _ in panel.calls}
    assert [time for _, time, _ in panel.calls] == [json.loads(line)["at"] for line in written]
    assert panel.calls[0][2] == ("distill", 40, 3, "iteration") and panel.calls[4][2] == ("distill", "the [disk] is\nnearly full")
    assert str(panel.calls[2][2][0]) == str(RECORD)


@pytest.mark.parametrize(
    "line",
    [
        "data: 90 records",
        "",
        EVENT,
        EVENT + '"record"}',
        EVENT + '"console", "at": 1.0, "arguments": []}',
        EVENT + '"progressed", "at": null, "arguments": [1]}',
    ],
)
def test_any_other_line_is_text(line):
    clock = EventClock()
    panel = Recorder(clock)
    assert replay(line, panel, clock) == line and panel.calls == []


def test_lines_are_put_together_from_pieces():
    buffer = LineBuffer()
    assert list(buffer.lines("one\ntw")) == ["one"]
    assert list(buffer.lines("o")) == []
    assert list(buffer.lines("\n\nthree")) == ["two", ""]
    assert list(buffer.rest()) == ["three"] and list(buffer.rest()) == []
