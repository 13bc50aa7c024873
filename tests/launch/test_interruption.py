"""A signal interrupts at once, or at the end of a block that must not be cut in two."""

import os
import signal
from contextlib import contextmanager
from threading import Event

import pytest

from launch.interruption import Interruption
from tests.deadlines import deadline


@pytest.fixture
def interruption():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    installed = Interruption()
    installed.install()
    yield installed
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_at_once(interruption, number):
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)


def test_a_block_ends_before_the_interruption(interruption):
    steps, announced = [], Event()
    with pytest.raises(KeyboardInterrupt):
        with interruption.deferred(announced.set):
            os.kill(os.getpid(), signal.SIGTERM)
            steps.append("end of the block")
        steps.append("after the block")
    assert steps == ["end of the block"] and announced.wait(deadline(1))
    with interruption.deferred(announced.set):
        pass  # the first interruption is over


def test_a_second_signal_cuts_the_block(interruption):
    with pytest.raises(KeyboardInterrupt), interruption.deferred(lambda: None):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the block went on after a second signal")


def test_an_error_in_the_block_is_not_replaced(interruption):
    with pytest.raises(ValueError), interruption.deferred(lambda: None):
        os.kill(os.getpid(), signal.SIGINT)
        raise ValueError


def test_a_generator_holds_the_block_until_its_caller_comes_back(interruption):
    """The loops of training yield inside the block, so that validation, export and checkpoint of a step belong to it."""
    steps = []

    @contextmanager
    def block():
        with interruption.deferred(lambda: None):
            yield

    def loop():
        for step in range(3):
            with block():
                yield step

    with pytest.raises(KeyboardInterrupt):
        for step in loop():
            if step == 1:
                os.kill(os.getpid(), signal.SIGINT)
            steps.append(step)
    assert steps == [0, 1]
