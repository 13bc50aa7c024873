"""DataOrder: epochs, resuming, and the refusal of other data or another seed."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minirl.errors import InputError
from minirl.training.data_order import DataOrder

sizes = st.integers(1, 40)
steps = st.lists(st.integers(0, 100), max_size=8)


@given(sizes, steps, st.integers(0, 5))
def test_every_epoch_visits_each_index_once_whatever_the_counts(size, counts, seed):
    order = DataOrder(size, seed)
    parts = [order.next(count) for count in counts]
    assert [len(part) for part in parts] == counts
    indices = sum(parts, [])
    for start in range(0, len(indices), size):
        epoch = indices[start : start + size]
        assert len(set(epoch)) == len(epoch) and set(epoch) <= set(range(size))
    assert indices == DataOrder(size, seed).next(len(indices))


@given(sizes, steps, st.integers(0, 60))
def test_a_resumed_order_continues_where_it_stopped(size, counts, more):
    order = DataOrder(size, seed=3)
    for count in counts:
        order.next(count)
    state = json.loads(json.dumps(order.state_dict()))
    resumed = DataOrder(size, seed=3)
    resumed.load_state_dict(state)
    assert resumed.next(more) == order.next(more)
    assert resumed.state_dict() == order.state_dict()


def test_every_epoch_and_every_seed_has_another_order():
    order = DataOrder(50, seed=0)
    first, second = order.next(50), order.next(50)
    assert first != second and first != list(range(50))
    assert first != DataOrder(50, seed=1).next(50)


def test_a_request_may_span_several_epochs():
    assert Counter(DataOrder(3, seed=0).next(9)) == {0: 3, 1: 3, 2: 3}


@pytest.mark.parametrize(("size", "seed", "message"), [(11, 0, "size of 10, this run has 11"), (10, 1, "seed of 0, this run has 1")])
def test_another_data_set_or_seed_is_refused_on_resume(size, seed, message):
    with pytest.raises(InputError, match=message):
        DataOrder(size, seed).load_state_dict(DataOrder(10, 0).state_dict())
