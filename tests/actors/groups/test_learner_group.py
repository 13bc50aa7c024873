"""LearnerGroup: the learner's warnings reach the driver, whose output the user sees."""

import warnings

from actors.groups.learner_group import LearnerGroup


class StubGroup(LearnerGroup):
    """A group without workers. Each rank reports the same notices."""

    start_timeout_s = 1.0

    def __init__(self, notices: list[str]):
        self._notices, self._start_calls = notices, []

    def get(self, calls, *arguments):
        return [self._notices, self._notices]

    def call(self, method, *arguments, **named):
        return [self._notices, self._notices]


def test_each_warning_of_the_ranks_is_shown_once_at_the_start_and_for_each_model():
    group = StubGroup(["the sdpa attention differs", "the learner pads"])
    for action in (group.wait_started, lambda: group.load_model("student")):
        with warnings.catch_warnings(record=True) as shown:
            warnings.simplefilter("always")
            action()
        assert [str(warning.message) for warning in shown] == ["the sdpa attention differs", "the learner pads"]
