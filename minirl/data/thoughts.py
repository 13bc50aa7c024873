"""Thoughts of reasoning models: the tags that open and close one, and a message's thought apart from its answer."""

import re
from typing import NamedTuple

from minirl.data.conversation import Message

# <think>, <thought>, <seed:think>, [THINK], <|START_THINKING|>, <|begin_of_thought|>; none with a slash, which would close a thought
_TAG = re.compile(r"[<\[◁]\|?[\w:.-]*(?:think|thought|reason|reflect|scratchpad)[\w:.-]*\|?[>\]▷]", re.IGNORECASE)
_CLOSING_WORD = re.compile(r"(?:^|[^a-z])end(?:[^a-z]|$)", re.IGNORECASE)
_OPENING_WORDS = (("START", "END"), ("BEGIN", "END"), ("start", "end"), ("begin", "end"))
THINK = "<think>"
THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking")  # of a message; they hold its thought


class Thought(NamedTuple):
    """A message's thought. tag: opens it; text: what stands between the tags.

    gap: what stands between the closing tag and the answer; None if the thought is a field of its own.
    """

    tag: str
    text: str
    gap: str | None


class OpenedThought(NamedTuple):
    """The end of a prompt that opens a thought. start: position of the tag in the prompt; gap: what follows the tag ("\\n")."""

    tag: str
    start: int
    gap: str


def closing_tag(tag: str) -> str:
    """`</think>` for `<think>`, `<|END_THINKING|>` for `<|START_THINKING|>`."""
    for opening, closing in _OPENING_WORDS:
        if opening in tag:
            return tag.replace(opening, closing)
    return f"{tag[0]}/{tag[1:]}"


def opened_thought(prompt: str, start: int = 0) -> OpenedThought | None:
    """The thought that `prompt` opens after position `start` and does not close; None if there is none."""
    tags = [match for match in _TAG.finditer(prompt, start) if not _CLOSING_WORD.search(match.group())]
    if not tags or closing_tag(tags[-1].group()) in prompt[tags[-1].end() :]:
        return None
    return OpenedThought(tags[-1].group(), tags[-1].start(), prompt[tags[-1].end() :])


def thought_of(message: Message, tag: str | None = None) -> Thought | None:
    """The thought of an assistant's message, from one of `THOUGHT_FIELDS` or from its content. None if it has none.

    tag: what opens a thought, if known; the content may then lack it, because the prompt ended with it.
    """
    if text := next((message.extra[name] for name in THOUGHT_FIELDS if message.extra.get(name)), None):
        return Thought(tag or THINK, str(text), None)
    opening = _TAG.match(message.content.lstrip())
    tag = opening.group() if opening else tag or THINK
    text, closing, answer = message.content.rpartition(closing_tag(tag))
    if not closing:
        return None
    return Thought(tag, text.lstrip().removeprefix(tag) if opening else text, answer[: len(answer) - len(answer.lstrip())])


def shows_thought(response: str, thought: Thought, message: Message) -> bool:
    """Whether the response holds the message's thought, beside an answer that may repeat it."""
    text = thought.text.strip()
    return not text or response.count(text) > answer_of(message).count(text)


def answer_of(message: Message) -> str:
    """The content of a message without its thought."""
    thought = thought_of(message) if message.role == "assistant" else None
    return message.content.rpartition(closing_tag(thought.tag))[2] if thought else message.content


def after_opened(opened: OpenedThought, thought: Thought | None, answer: str) -> str:
    """What is learnt after a prompt that opens a thought: the thought, its closing tag and the answer.

    thought: None closes it at once. answer: as the template renders it after the prompt without the tag, usually without its thought.
    """
    closing = closing_tag(opened.tag)
    if (rendered := answer.lstrip()).startswith(opened.tag):  # the template keeps the thought, with other space around its tag
        return rendered.removeprefix(opened.tag).removeprefix(opened.gap)
    answer = answer.removeprefix(closing)  # DeepSeek V3.1 closes what its invitation opens
    if closing in answer:  # the template keeps the thought, and the record's content lacked the tag
        return answer
    if thought is not None:  # the template keeps what stands between the tags of another family
        answer = answer.rpartition(closing_tag(thought.tag))[2]
    newline = "\n" if "\n" in opened.gap else ""
    if thought is None or thought.gap is None:
        text = "" if thought is None else thought.text.strip("\n")
        return f"{text}{newline}{closing}{2 * newline}{answer}"
    return f"{thought.text.removeprefix(opened.gap)}{closing}{thought.gap}{answer.lstrip()}"


def with_thought(thought: Thought, response: str) -> str:
    """A response from which the template dropped the thought, with it."""
    closing = closing_tag(thought.tag)
    answer = response.rpartition(closing)[2]  # a template may leave a part of it
    if thought.gap is None:
        text = thought.text.strip("\n")
        return f"{thought.tag}\n{text}\n{closing}\n\n{answer}"
    return f"{thought.tag}{thought.text}{closing}{thought.gap}{answer.lstrip()}"
