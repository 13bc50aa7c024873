"""Deadlines of the tests. A deadline only ends a test that hangs, so it is far longer than the wait that it limits.

MINIRL_TEST_SLOWNESS: how many times slower than a quiet machine with two cores this machine may be (10 if it is not set).
"""

import os
import time
from collections.abc import Callable

SLOWNESS = float(os.environ.get("MINIRL_TEST_SLOWNESS") or 10)


def deadline(quiet_s: float) -> float:
    """The seconds after which a wait that takes `quiet_s` on a quiet machine has failed."""
    return quiet_s * SLOWNESS


def wait_until(ready: Callable[[], bool], quiet_s: float) -> bool:
    """Whether `ready` becomes true within the deadline. Looks at least once."""
    end = time.monotonic() + deadline(quiet_s)
    while not (answer := ready()) and time.monotonic() < end:
        time.sleep(0.01)
    return answer
