"""GroupPool: the running groups; one stays up from stage to stage where the next stage needs the same processes."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from actors.groups.base import Group


@dataclass(frozen=True)
class GroupRequest:
    """A group that a stage needs.

    key: the role and all settings that its processes start with; a running group of the same key is used again. start: starts the group
    without waiting. renew: prepares a group of an earlier stage for this one, without waiting.
    """

    key: Hashable
    start: Callable[[], Group]
    renew: Callable[[Any], None] = lambda group: None


class GroupPool:
    """All running groups, by the key of their request."""

    def __init__(self):
        self._groups: dict[Hashable, Group] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._groups

    @contextmanager
    def running(self, *requests: GroupRequest) -> Iterator[tuple[Group, ...]]:
        """Yields the requested groups when all are ready. They start at the same time, and stay up after the block.

        All other groups are stopped first, so that a stage never needs more room than its own groups. After an error in the block, every
        group is stopped.
        """
        try:
            self._stop_all_but({request.key for request in requests})
            for request in requests:
                if request.key in self._groups:
                    request.renew(self._groups[request.key])
                else:
                    self._groups[request.key] = request.start()
            groups = tuple(self._groups[request.key] for request in requests)
            for group in groups:
                group.wait_started()
            yield groups
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stops all groups."""
        self._stop_all_but(set())

    def _stop_all_but(self, kept: set[Hashable]) -> None:
        with ExitStack() as stack:  # an error in one `stop` does not keep the others from stopping
            for key in self._groups.keys() - kept:
                stack.callback(self._groups.pop(key).stop)
