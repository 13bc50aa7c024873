"""GroupPool: what a stage needs again stays up, what stands in the way of a start is stopped first, and an error stops everything."""

import pytest

from actors.groups.pool import GroupPool, GroupRequest


class StubGroup:
    """A group without processes that writes what happens to it into a common list."""

    def __init__(self, name: str, events: list[str]):
        self.name, self.events = name, events
        events.append(f"start {name}")

    def wait_started(self) -> None:
        self.events.append(f"wait {self.name}")

    def stop(self) -> None:
        self.events.append(f"stop {self.name}")


@pytest.fixture
def events() -> list[str]:
    return []


@pytest.fixture
def request_for(events):
    def request_for(name: str) -> GroupRequest:
        return GroupRequest(name, lambda: StubGroup(name, events), lambda group: events.append(f"renew {group.name}"))

    return request_for


def test_all_groups_start_before_any_is_waited_for_and_stay_up_until_the_pool_stops(events, request_for):
    pool = GroupPool()
    with pool.running(request_for("learner"), request_for("rollout")) as groups:
        assert [group.name for group in groups] == ["learner", "rollout"]
    assert events == ["start learner", "start rollout", "wait learner", "wait rollout"]
    events.clear()
    pool.stop()
    assert sorted(events) == ["stop learner", "stop rollout"]


def test_a_group_that_is_needed_again_is_renewed_and_the_others_go_before_a_start(events, request_for):
    pool = GroupPool()
    with pool.running(request_for("learner"), request_for("teacher")) as (learner, _):
        events.clear()
    with pool.running(request_for("learner"), request_for("rollout")) as (same, _):
        assert same is learner
    assert events == ["stop teacher", "renew learner", "start rollout", "wait learner", "wait rollout"]


def test_a_group_that_a_stage_does_not_need_is_stopped_also_where_nothing_starts(events, request_for):
    pool = GroupPool()
    with pool.running(request_for("learner"), request_for("rollout")):
        events.clear()
    with pool.running(request_for("learner")):
        assert events == ["stop rollout", "renew learner", "wait learner"]


def test_an_error_in_the_block_stops_every_group(events, request_for):
    pool = GroupPool()
    with pool.running(request_for("learner"), request_for("rollout")):
        pass
    with pytest.raises(KeyboardInterrupt), pool.running(request_for("learner")):
        raise KeyboardInterrupt
    assert sorted(event for event in events if event.startswith("stop")) == ["stop learner", "stop rollout"]


def test_a_group_that_does_not_start_takes_the_others_with_it(events, request_for):
    def fails() -> StubGroup:
        raise ValueError("no room")

    with pytest.raises(ValueError, match="no room"), GroupPool().running(request_for("learner"), GroupRequest("rollout", fails)):
        pass
    assert events == ["start learner", "stop learner"]


def test_a_group_that_does_not_stop_leaves_no_other_running(events, request_for):
    class Stuck(StubGroup):
        def stop(self) -> None:
            super().stop()
            raise ValueError(self.name)

    pool = GroupPool()
    with pool.running(*(GroupRequest(name, lambda name=name: Stuck(name, events)) for name in ("learner", "rollout"))):
        events.clear()
    with pytest.raises(ValueError, match="learner|rollout"):
        pool.stop()
    assert sorted(events) == ["stop learner", "stop rollout"]
