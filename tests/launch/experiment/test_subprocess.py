"""A child ends by itself, is told to end when its parent is interrupted, and is killed where it does not listen."""

import os
import signal
import sys
import threading
import time

import pytest

from launch.experiment.subprocess import run_to_end

LISTENS = """
import signal, sys, time
def end(*_):
    time.sleep(0.5)  # as a run takes to end its workers
    print("ended its own")
    sys.exit(3)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
time.sleep(60)
"""
DEAF = """
import signal, time
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""


def interrupt_when_ready(log) -> None:
    def wait_and_send() -> None:
        deadline = time.monotonic() + 30
        while "ready" not in (log.read_text() if log.exists() else "") and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait_and_send, daemon=True).start()


@pytest.fixture
def interruptible():
    """As the command sees to it: a shell's background job, which the tests may be, ignores SIGINT otherwise."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_exit_code_and_output_are_the_childs(tmp_path):
    log = tmp_path / "log"
    for code in (0, 4):
        assert run_to_end([sys.executable, "-c", f"import sys; print('says {code}'); sys.exit({code})"], log) == code
    assert log.read_text() == "says 0\nsays 4\n"


@pytest.mark.parametrize(("child", "ending_s", "said"), [(LISTENS, 30, "ready\nended its own\n"), (DEAF, 0.3, "ready\n")])
def test_an_interrupted_parent_waits_for_what_the_child_ends_but_not_for_ever(interruptible, tmp_path, child, ending_s, said):
    log = tmp_path / "log"
    interrupt_when_ready(log)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_to_end([sys.executable, "-c", child], log, ending_s)
    assert log.read_text() == said
    assert time.monotonic() - began < 30
