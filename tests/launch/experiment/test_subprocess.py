"""A child process runs to its end, gets SIGTERM when its parent is interrupted, and SIGKILL if it ignores that."""

import os
import signal
import sys
import threading
import time

import pytest

from launch.experiment.subprocess import run_to_end
from tests.deadlines import wait_until

OBEYS = """
import signal, sys, time
def end(*_):
    time.sleep(0.5)  # a run needs time to stop its workers
    print("stopped its workers")
    sys.exit(3)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
time.sleep(600)
"""
IGNORES = """
import signal, time
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""


def interrupt_when_ready(log) -> None:
    def wait_and_send() -> None:
        wait_until(lambda: log.exists() and "ready" in log.read_text(), 3)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait_and_send, daemon=True).start()


@pytest.fixture
def interruptible():
    """Restores the default SIGINT handler, as the command does: the tests may run as a shell's background job, which ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_exit_code_and_output_of_the_child_are_returned(tmp_path):
    log = tmp_path / "log"
    for code in (0, 4):
        assert run_to_end([sys.executable, "-c", f"import sys; print('says {code}'); sys.exit({code})"], log) == code
    assert log.read_text() == "says 0\nsays 4\n"


@pytest.mark.parametrize(("child", "grace_s", "output"), [(OBEYS, 30, "ready\nstopped its workers\n"), (IGNORES, 0.3, "ready\n")])
def test_an_interrupted_parent_waits_for_the_child_but_not_for_ever(interruptible, tmp_path, child, grace_s, output):
    log = tmp_path / "log"
    interrupt_when_ready(log)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_to_end([sys.executable, "-c", child], log, grace_s)
    assert log.read_text() == output
    assert time.monotonic() - start < 30
