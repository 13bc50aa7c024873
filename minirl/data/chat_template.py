"""ChatTemplate: a tokenizer's own chat template, which turns a conversation into segments of tokens.

The turns before a learnt turn are rendered with the invitation to answer, which is its prompt, and with the answer. What the second text
adds to the first is learnt, through the end token. Where a template renders a turn differently once others follow (it drops a thought
from the history, or moves the system prompt to the last turn), the learnt turns of a conversation are no single sequence. Each of them
then becomes an example with a prompt of its own, as the model meets it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os.path import commonprefix
from typing import Any, NamedTuple, TypeVar

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from minirl.data.continuation import Continuation
from minirl.data.conversation import Conversation, Message
from minirl.data.segment import Segment
from minirl.data.thoughts import after_opened, answer_of, closing_tag, opened_thought, shows_thought, thought_of, with_thought
from minirl.errors import InputError, first_line

# What `apply_chat_template` gives the template itself, from the records.
_RESERVED = {"messages", "conversation", "tools", "add_generation_prompt", "tokenize", "chat_template", "continue_final_message"}
_RESERVED |= {"return_dict", "return_tensors", "return_assistant_tokens_mask", "padding", "truncation", "max_length", "tokenizer_kwargs"}
_MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
T = TypeVar("T")


class Rendering(NamedTuple):
    """A rendered text. marks: [start, end) of what the template marks as the assistant's; None if the template has no marks."""

    text: str
    marks: list[tuple[int, int]] | None


@dataclass(frozen=True)
class Turn:
    """A learnt turn as text. prompt: all before the response; response: with its end token and what the template puts after it; empty
    where the record has none. marks: as in `Rendering`, in the response.
    """

    prompt: str
    response: str = ""
    marks: list[tuple[int, int]] | None = None
    thought_closed: bool = False


class ChatTemplate:
    """Raises InputError, which names the record, for whatever the template cannot render."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_tokens: tuple[int, ...], arguments: dict[str, Any] | None = None) -> None:
        """arguments: `data.template_arguments`. Raises InputError if the template reads no argument of such a name."""
        self.tokenizer, self.end_tokens, self.arguments = tokenizer, end_tokens, dict(arguments or {})
        self.continuation = Continuation(tokenizer)
        self._rendered: dict[Conversation, list[Turn]] = {}  # by `is_one_sequence`, until they become segments
        self.end_texts = tuple(tokenizer.convert_ids_to_tokens(list(end_tokens)))
        for name in self.arguments:
            if name in _RESERVED:
                raise InputError(f"data.template_arguments.{name} is set by the program from each record; leave it out")
            if not re.search(rf"\b{re.escape(name)}\b", self._sources):
                raise InputError(f"the chat template has no argument {name}; leave data.template_arguments.{name} out or correct the name")

    def __call__(self, conversation: Conversation) -> list[Segment]:
        """The segments of all turns if they are one sequence, else of the last turn. A gold response is the last segment."""
        turns = self._rendered.pop(conversation, None) or self._learnable(conversation)
        self._refuse_vanished_turns(conversation, "".join(turn.prompt + turn.response for turn in turns))
        segments, text = [], ""
        for turn in turns:
            segments.append(Segment.of(self._encoded(self.continuation.encode, turn.prompt, text, conversation)))
            if turn.response:
                segments.append(self._response(turn, text + turn.prompt, conversation))
            text += turn.prompt + turn.response
        if conversation.has_response and not conversation.messages[-1].is_learnt:
            segments.append(Segment.of([]))
        return segments

    def is_one_sequence(self, conversation: Conversation) -> bool:
        """Whether the prompt of each learnt turn begins with the learnt turns before it. Otherwise each needs an example of its own."""
        prompts = len(conversation.learnt_turns) + (not conversation.messages[-1].is_learnt)
        if prompts < 2:
            return True
        rendered = self._turns(conversation)
        joined = _joined(rendered, self.end_texts)
        parts = zip(conversation.by_turn(), rendered, strict=True)
        self._rendered |= {conversation: joined} if joined else {part: [turn] for part, turn in parts}
        return joined is not None

    def render(self, messages: Sequence[Message], conversation: Conversation, start_answer: bool) -> Rendering:
        """start_answer: whether the text ends with the invitation to answer."""
        turns, tools = [message.as_dict() for message in messages], list(conversation.tools) if conversation.tools else None
        options = {**self.arguments, "tools": tools, "add_generation_prompt": start_answer}
        try:  # a template is a program of the model's author: it may raise anything
            source, special = self.tokenizer.get_chat_template(tools=tools), self.tokenizer.special_tokens_map
            if not _MARK.search(source):
                return Rendering(self.tokenizer.apply_chat_template(turns, tokenize=False, **options), None)
            texts, marks = render_jinja_template([turns], chat_template=source, return_assistant_tokens_mask=True, **(special | options))
            return Rendering(texts[0], marks[0])
        except Exception as error:
            raise InputError(f"the chat template{self._place} refuses {conversation.origin}: {_reason(error)}") from None

    @property
    def _place(self) -> str:
        return f" of {self.tokenizer.name_or_path}" if self.tokenizer.name_or_path else ""

    @cached_property
    def _sources(self) -> str:
        """The text of all templates of the tokenizer: some have another for tools."""
        template = self.tokenizer.chat_template
        return "\n".join(template.values()) if isinstance(template, dict) else template

    def _learnable(self, conversation: Conversation) -> list[Turn]:
        """All turns as pieces of one text, else the last turn alone."""
        rendered = self._turns(conversation)
        return _joined(rendered, self.end_texts) or rendered[-1:]

    def _turns(self, conversation: Conversation) -> list[Turn]:
        """One for each learnt turn, and one without a response if the last turn is not learnt."""
        messages = _with_context(conversation)
        turns = [self._turn(messages, i, conversation) for i in conversation.learnt_turns]
        if not messages[-1].is_learnt:
            prompt = messages[:-1] if conversation.has_response else messages
            turns.append(Turn(self.render(prompt, conversation, True).text))
        return turns

    def _turn(self, messages: Sequence[Message], index: int, conversation: Conversation) -> Turn:
        prompt = self.render(messages[:index], conversation, True).text
        answered = self.render(messages[: index + 1], conversation, False)
        thought = thought_of(messages[index])
        if answered.text.startswith(prompt):
            response = answered.text.removeprefix(prompt)
            if thought is None or shows_thought(response, thought, messages[index]):
                return Turn(prompt, response, _marks_from(answered.marks, len(prompt)))
        before = self.render(messages[:index], conversation, False)
        invitation = len(commonprefix([prompt, before.text]))
        if answered.text.startswith(prompt):
            if (closing := closing_tag(thought.tag)) not in prompt[invitation:]:
                is_known = thought.gap is not None or closing in self._sources  # else `RenderedFields` refuses the field
                return Turn(prompt, with_thought(thought, response) if is_known else response)
        elif (opened := opened_thought(prompt, invitation)) and answered.text.startswith(prompt[: opened.start]):
            thought = thought_of(messages[index], opened.tag)
            response = after_opened(opened, thought, answered.text[opened.start :])
            return Turn(prompt, response, thought_closed=thought is None and response.lstrip().startswith(closing_tag(opened.tag)))
        elif marks := (answered.marks or [])[len(before.marks or []) :]:
            start = max(marks[0][0], len(commonprefix([prompt, answered.text])))
            return Turn(answered.text[:start], answered.text[start:], _marks_from(marks, start))
        closes_thought = thought is not None and closing_tag(thought.tag) in prompt[invitation:]
        raise InputError(_why_no_prompt(prompt, answered.text, conversation.origin, closes_thought))

    def _refuse_vanished_turns(self, conversation: Conversation, text: str) -> None:
        """Raises InputError if the template renders nothing of a turn's content, as some do with system prompts or answers of tools.

        text: the rendered conversation. Content that it does not hold as it stands, in the order of the turns, may be there in another
        form, such as JSON, or in another place.
        """
        messages, position = _with_context(conversation), 0
        for i, message in enumerate(messages if conversation.messages[-1].is_learnt or not conversation.has_response else messages[:-1]):
            content = answer_of(message).strip()
            if (start := text.find(content, position)) >= 0:
                position = start + len(content)
                continue
            changed = [*messages[:i], replace(message, content=f"{message.content} b"), *messages[i + 1 :]]
            if self.render(messages, conversation, False).text == self.render(changed, conversation, False).text:
                raise InputError(
                    f"the chat template{self._place} renders nothing of the {message.role} turn of {conversation.origin}; take that turn "
                    "out (a system turn may come from data.system_prompt), or use a model whose template renders it"
                )

    def _response(self, turn: Turn, before: str, conversation: Conversation) -> Segment:
        tokens = self._encoded(self.continuation.encode, turn.response, before, conversation)
        end = next((i for i, token in enumerate(tokens) if token in self.end_tokens), None)
        if end is None:
            raise InputError(
                f"the chat template closes an assistant's turn with none of the model's end tokens, in {conversation.origin}; "
                "use data.template: alpaca"
            )
        is_target = [True] * (end + 1) if turn.marks is None else self._marked(turn, before, conversation)[: end + 1]
        is_target[end] = is_target[end] or (end > 0 and is_target[end - 1])  # a student that never learns to end would answer for ever
        return Segment.of(tokens, is_target, turn.thought_closed)

    def _marked(self, turn: Turn, before: str, conversation: Conversation) -> list[bool]:
        """For each token of a response, whether a marked character is in it, as transformers' `return_assistant_tokens_mask` counts."""
        offsets = self._encoded(self.continuation.offsets, turn.response, before, conversation)
        return [any(start < b and a < end for a, b in turn.marks) for start, end in offsets]

    def _encoded(self, encode: Callable[[str, str], list[T]], text: str, before: str, conversation: Conversation) -> list[T]:
        try:
            return encode(text, before)
        except Exception as error:  # text that is no UTF-8 raises errors of several types
            raise InputError(f"the tokenizer cannot encode {conversation.origin}: {_reason(error)}") from None


def _joined(turns: list[Turn], end_texts: tuple[str, ...]) -> list[Turn] | None:
    """The turns as pieces of one text: each prompt without what comes before. None if they are not."""
    pieces: list[Turn] = []
    text = ""
    for turn in turns:
        if pieces and not turn.prompt.startswith(text):  # Phi's template closes the whole conversation, after the end token
            last = pieces[-1].response
            end = min((last.find(end) + len(end) for end in end_texts if end in last), default=len(last))
            text = text[: len(text) - len(last) + end]
            pieces[-1] = replace(pieces[-1], response=last[:end])
        if not turn.prompt.startswith(text):
            return None
        pieces.append(replace(turn, prompt=turn.prompt.removeprefix(text)))
        text = turn.prompt + turn.response
    return pieces


def _marks_from(marks: list[tuple[int, int]] | None, start: int) -> list[tuple[int, int]] | None:
    """The part of the marks after `start`, counted from there."""
    return None if marks is None else [(max(a, start) - start, b - start) for a, b in marks if b > start]


def _why_no_prompt(prompt: str, answered: str, origin: str, closes_thought: bool) -> str:
    start = max(0, len(commonprefix([prompt, answered])) - 20)
    renderings = f"the prompt as {prompt[start:][:60]!r} and the answered turn as {answered[start:][:60]!r}"
    if closes_thought:
        return (
            f"{origin} has a thought, for which the chat template's prompt has no place: it renders {renderings}; take the thought out of "
            "the record, or leave data.template_arguments out so that the template opens one"
        )
    return (
        f"the chat template has no fixed prompt for {origin}: it renders {renderings}; set data.template_arguments, mark the answers in "
        "the template with {% generation %}, or use data.template: alpaca"
    )


def _with_context(conversation: Conversation) -> Sequence[Message]:
    """The messages with the context below the last user message."""
    if not conversation.context:
        return conversation.messages
    *_, last = [i for i, message in enumerate(conversation.messages) if message.role == "user"]
    return [
        replace(message, content=f"{message.content}\n\n{conversation.context}") if i == last else message
        for i, message in enumerate(conversation.messages)
    ]


def _reason(error: BaseException) -> str:
    """The first line of the error, after its type unless it comes from the template's own raise_exception."""
    line, kind = first_line(error), type(error).__name__
    return line if type(error) is jinja2.TemplateError or line == kind else f"{kind}: {line}"
