"""Conversation: one instruction record with its messages, tools, references and origin."""

import json
from dataclasses import dataclass, field, replace
from typing import Any, Self


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    role: system, user, assistant or tool.
    extra: fields besides role and content that a chat template may render, such as `reasoning_content` or `tool_calls`.
    weight: 1 or 0; an assistant's turn of weight 0 is not learnt. Turns of other roles never are.

    Example: Message("assistant", "4", {"reasoning_content": "2+2 is 4"}).
    """

    role: str
    content: str
    extra: dict[str, Any] = field(default_factory=dict, hash=False)
    weight: float = 1.0

    @property
    def is_learnt(self) -> bool:
        return self.role == "assistant" and self.weight != 0

    @property
    def references(self) -> tuple[str, ...]:
        """The content as the only reference. An answer that only calls tools has no text before it is rendered: no reference."""
        return (self.content,) if self.content or not self.extra else ()

    @property
    def text(self) -> str:
        """Content and extra fields as one text; the content alone if it has no extra fields."""
        return self.content if not self.extra else f"{self.content}\n{_sorted_json(self.extra)}"

    def as_dict(self) -> dict[str, Any]:
        """What a chat template receives."""
        return {"role": self.role, "content": self.content, **self.extra}


@dataclass(frozen=True)
class Conversation:
    """One record.

    messages: the turns; the gold response comes last, if the record has one.
    references: every acceptable response as text.
    context: what Alpaca calls input; it belongs to the last user message.
    origin: where the record comes from, for messages to the user ("train.jsonl line 3").
    tokens: token ids of prompt and response, if the record was read as ids. These ids are then sampled from and learnt, and `messages`
    only holds their text.
    teacher: the record's column `teacher_id`.
    tools: JSON schemas of the functions that the assistant may call; the chat template renders them. None: no tools.
    """

    messages: tuple[Message, ...]
    references: tuple[str, ...] = ()
    context: str = ""
    origin: str = "a record"
    tokens: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    teacher: str | None = None
    tools: tuple[dict[str, Any], ...] | None = field(default=None, hash=False)

    @property
    def has_response(self) -> bool:
        return self.messages[-1].role == "assistant"

    @property
    def learnt_turns(self) -> tuple[int, ...]:
        """The positions of the turns that are learnt."""
        return tuple(i for i, message in enumerate(self.messages) if message.is_learnt)

    def by_turn(self) -> list[Self]:
        """One conversation for each learnt turn, which is its last one and the only one that is learnt; then, if the last turn of all is
        not learnt, the whole conversation, with nothing to learn.
        """
        messages = tuple(replace(message, weight=0.0) if message.is_learnt else message for message in self.messages)
        parts = []
        for i in self.learnt_turns:
            is_last, turns = i == len(messages) - 1, (*messages[:i], self.messages[i])
            references, context = (self.references, self.context) if is_last else (self.messages[i].references, "")
            parts.append(replace(self, messages=turns, references=references, context=context))
        return parts if self.messages[-1].is_learnt else [*parts, replace(self, messages=messages)]

    @property
    def prompt_text(self) -> str:
        """Everything before the gold response as one text. It decides which split the record belongs to."""
        prompt = self.messages[:-1] if self.has_response else self.messages
        tools = [_sorted_json(self.tools)] if self.tools else []
        return "\n".join([*tools, *(message.text for message in prompt), self.context])


def question_and_answers(question: str, answers: tuple[str, ...], origin: str) -> Conversation:
    """A record of one turn: the first answer is the gold response, and all answers are references."""
    return Conversation((Message("user", question), *(Message("assistant", answer) for answer in answers[:1])), answers, origin=origin)


def _sorted_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
