"""One instruction record: messages, references and where it comes from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Conversation:
    """One record. messages: (role, content) pairs, the gold response last where there is one.

    references: every acceptable response as text. context: what Alpaca calls input, it belongs to the last user message.
    origin: where the record stands, for messages to the user. tokens: prompt and response, where the record came in token ids; they
    are what is learnt and sampled from then, and the messages only say what they mean. teacher: its column `teacher_id`.
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
        """Everything that comes before the gold response, as one text: what decides on which side of a split the record falls."""
        prompt = self.messages[:-1] if self.has_response else self.messages
        return "\n".join([*(content for _, content in prompt), self.context])
