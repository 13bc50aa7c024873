"""Which rows of which step become the states of which response, on small numbers."""

import pytest
import torch

from actors.engine.captured_states import CapturedStates
from minirl.errors import RunError


def step(states: CapturedStates, *rows: tuple[str, int, float]) -> None:
    """One step of the engine. rows: of each a request, its place, and the value of its state."""
    requests, places, values = zip(*rows, strict=True)
    states.add(list(requests), list(places), torch.tensor(values)[:, None].expand(-1, 2).contiguous())


def test_each_response_gets_its_own_states_in_order():
    states = CapturedStates(slots=2, tokens=4, width=2)
    step(states, ("a", 0, 1.0), ("b", -30, 9.0))  # b's prompt is cut in parts
    step(states, ("b", 0, 11.0), ("a", 1, 2.0))  # in another order
    step(states, ("a", 2, 3.0), ("b", 1, 12.0))
    assert states.take("a", 3)[:, 0].tolist() == [1.0, 2.0, 3.0]
    step(states, ("a", 3, 9.0), ("b", 2, 13.0))  # a had ended when this step began
    step(states, ("c", 0, 21.0), ("b", 3, 14.0))  # c takes a's slot
    step(states, ("c", 1, 22.0), ("b", 4, 15.0))  # b has one place more than there is room for
    assert states.take("b", 4).tolist() == [[value, value] for value in (11.0, 12.0, 13.0, 14.0)]
    assert states.take("c", 2)[:, 0].tolist() == [21.0, 22.0]


def test_after_a_preemption_the_states_that_sampled_stay():
    states = CapturedStates(slots=1, tokens=4, width=2)
    for row in [("a", 0, 1.0), ("a", 1, 2.0), ("a", -3, 9.0), ("a", 0, 9.0), ("a", 1, 9.0), ("a", 2, 3.0)]:
        step(states, row)
    assert states.take("a", 3)[:, 0].tolist() == [1.0, 2.0, 3.0]


def test_a_state_that_is_missing_or_has_no_room_is_an_error():
    states = CapturedStates(slots=1, tokens=4, width=2)
    step(states, ("a", 0, 1.0), ("b", -1, 1.0))
    with pytest.raises(RunError, match="a response of 2 tokens has the teacher's states of 1 only"):
        states.take("a", 2)
    states.clear()
    step(states, ("b", 0, 1.0))
    with pytest.raises(RunError, match="more than 1 responses are sampled at a time"):
        step(states, ("c", 0, 1.0))
