"""Conversation: one instruction record with its messages, references and origin."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Conversation:
    """One record.

    messages: (role, content) pairs; the gold response comes last, if the record has one.
    references: every acceptable response as text.
    context: what Alpaca calls input; it belongs to the last user message.
    origin: where the record comes from, for messages to the user ("train.jsonl line 3").
    tokens: token ids of prompt and response, if the record was read as ids. These ids are then sampled from and learnt, and `messages`
    only holds their text.
    teacher: the record's column `teacher_id`.
    """

    messages: tuple[tuple[str, str], ...]
    references: tuple[str, ...] = ()
    context: str = ""
    origin: str = "a record"
    tokens: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    teacher: str | None = None

    @property
    def has_response(self) -> bool:
        return self.messages[-1][0] == "assistant"

    @property
    def prompt_text(self) -> str:
        """Everything before the gold response as one text. It decides which split the record belongs to."""
        prompt = self.messages[:-1] if self.has_response else self.messages
        return "\n".join([*(content for _, content in prompt), self.context])
