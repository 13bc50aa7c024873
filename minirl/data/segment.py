"""Segment: a piece of a conversation in tokens, and which of them are learnt."""

from collections.abc import Sequence
from typing import NamedTuple, Self


class Segment(NamedTuple):
    """is_target: for each token, whether it is learnt. The assistant's words and their end token are.

    thought_closed: the prompt before opens a thought that the record lacks, so this response closes it at once.
    """

    tokens: list[int]
    is_target: list[bool]
    thought_closed: bool = False

    @classmethod
    def of(cls, tokens: list[int], is_target: Sequence[bool] = (), thought_closed: bool = False) -> Self:
        """is_target: of the first tokens; those after them are not learnt."""
        return cls(tokens, [*is_target, *[False] * (len(tokens) - len(is_target))], thought_closed)

    @property
    def targets(self) -> int:
        """The number of learnt tokens."""
        return sum(self.is_target)

    @property
    def gold(self) -> int:
        """The number of tokens through the last learnt one."""
        return max((i + 1 for i, is_target in enumerate(self.is_target) if is_target), default=0)
