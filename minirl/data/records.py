"""Reads instruction records from files, the Hugging Face hub and installed packages into Conversations.

Every column of a record is used, or named in `data.ignore_columns`, or refused with the record's line.
"""

import os
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from minirl.data.conversation import Conversation, Message
from minirl.data.hub_rows import FORM, parse_hub_source, read_hub
from minirl.data.messages import check_turns, parse_history, parse_messages, parse_tools
from minirl.data.record_files import FORMATS, Row, describe_assumption, read_file, recognise_file, unreadable
from minirl.data.values import check_text, printable, printable_list
from minirl.errors import InputError

MESSAGES = ("messages", "conversations")
PROMPTS = ("prompt", "instruction", "question")
RESPONSES = ("completion", "response", "output", "answer")
CONTEXTS = ("input", "context")
SYSTEM_PROMPTS = ("system", "system_prompt")
COLUMNS = {
    MESSAGES: "A list of messages, from the first turn to the last. An assistant's message at the end is the gold response.",
    PROMPTS: "The user's text; or a list of messages, whose answers are then not learnt.",
    RESPONSES: "With a prompt: the gold response; or a list of texts, of which the first is the gold response and all are references; or a "
    "list of messages (TRL). Without it, the record is a prompt alone.",
    CONTEXTS: "With a prompt: Alpaca's and Dolly's context. `template: alpaca` puts it under `### Input:`, `chat` below the prompt.",
    SYSTEM_PROMPTS: "The system prompt. An empty text counts as none.",
    ("history",): "With a prompt: pairs [user's text, assistant's text] of earlier turns, which are learnt like any other.",
    ("tools",): "JSON schemas of the tools, as a list or as JSON text. Passed to the chat template, which must render them.",
    ("teacher_id",): "With several teachers that have ids: the teacher of the record. One teacher needs none.",
}
UNDERSTOOD_COLUMNS = (
    "messages or conversations (ShareGPT); prompt with completion, response or output; instruction with input and output (Alpaca); "
    "instruction with context and response (Dolly); question with answer"
)
_UNREAD_ENDINGS = {
    ".txt",
    ".yml",
    ".yaml",
    ".arrow",
    ".zst",
    ".xz",
    ".bz2",
    ".zip",
    ".tar",
    ".gz",
    ".xlsx",
    ".xml",
    ".pkl",
    ".npz",
    ".feather",
}


def read_conversations(source: str, limit: int | None = None, ignored: Collection[str] = ()) -> list[Conversation]:
    """The first `limit` records of `source`, in its order (None: all). Raises InputError that names the first unusable record.

    ignored: columns, and fields of messages, that may be left out.
    """
    if source.startswith("embedded:"):
        from minirl.data.embedded.assets import embedded_conversations

        conversations = embedded_conversations(source)[:limit]
    else:
        try:
            conversations = [parse_record(columns, origin, ignored) for origin, columns in islice(read_rows(source), limit)]
        except _UnknownForm as error:
            raise InputError(f"{error}{describe_assumption(Path(source))}") from None
    if not conversations:
        raise InputError(f"the data set {source} is empty; give one with at least one record")
    return conversations


def read_rows(source: str, streaming: bool = False) -> Iterator[Row]:
    """The rows of a data file or of a hub data set. `streaming` reads a hub data set without downloading all of it."""
    path = Path(source)
    if recognise_file(path):
        return read_file(path)
    if parse_hub_source(source) and path.suffix.lower() not in _UNREAD_ENDINGS and not _exists(path):
        return read_hub(source, streaming)
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # no path at all, perhaps
        pass
    except OSError as error:  # a circle of links, a name that is too long, a directory that may not be read
        raise unreadable(path, error) from None
    raise InputError(
        f"cannot tell what the data source {printable(source)!r} is; give a file that ends in {', '.join(FORMATS)} (perhaps with .gz) or "
        f".bin, or a hub data set as {FORM}"
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


class _UnknownForm(InputError):
    """A record with the columns of no known form; perhaps its file was read as the wrong format."""


class _Columns:
    """The columns of one row that have not been used yet."""

    def __init__(self, columns: dict[str, Any], origin: str, ignored: Collection[str]):
        self.names, self.origin = [name for name in columns if name not in ignored], origin
        self.unused = {name: value for name, value in columns.items() if value is not None and name not in ignored}

    def take(self, names: tuple[str, ...]) -> tuple[str, Any]:
        """Name and value of the one column that has one of the names; the value is None if there is none."""
        present = [name for name in names if name in self.unused]
        if len(present) > 1:
            raise InputError(
                f"{self.origin} has the columns {' and '.join(present)}, of which one can be read; name the other in data.ignore_columns"
            )
        return (present[0], self.unused.pop(present[0])) if present else (names[0], None)

    def refuse_unused(self) -> None:
        if self.unused:
            several = len(self.unused) > 1
            raise InputError(
                f"{self.origin} has the column{'s' * several} {printable_list(self.unused)}, which {'are' if several else 'is'} not used "
                f"here; remove {'them' if several else 'it'}, or set data.ignore_columns: [{printable_list(self.unused)}]"
            )


def parse_record(columns: dict[str, Any], origin: str, ignored: Collection[str] = ()) -> Conversation:
    """One row as a Conversation; its columns decide the form. Raises InputError that names `origin`."""
    row = _Columns(columns, origin, ignored)
    teacher = _teacher(row.take(("teacher_id",))[1], origin)
    tools = parse_tools(row.take(("tools",))[1], origin)
    system_column, system = row.take(SYSTEM_PROMPTS)
    context, answers = "", ()
    messages_column, value = row.take(MESSAGES)
    if value is not None:
        messages = parse_messages(value, messages_column, origin, ignored)
    else:
        messages, answers, context = _from_pair(row, ignored)
    row.refuse_unused()
    if system is not None and check_text(system, system_column, origin):
        messages = [Message("system", system), *messages]
    if messages[-1].role == "assistant" and not messages[-1].is_learnt:  # neither learnt nor a prompt's end
        messages = messages[:-1]
    check_turns(messages, origin)
    references = answers or (messages[-1].references if messages[-1].role == "assistant" else ())
    return Conversation(tuple(messages), references, context, origin, teacher=teacher, tools=tools)


def _teacher(value: Any, origin: str) -> str | None:
    """The column teacher_id as a text; numbers are common in it."""
    return str(value) if type(value) is int else None if value is None else check_text(value, "teacher_id", origin)


def parse_references(columns: dict[str, Any], origin: str) -> tuple[str, ...]:
    """Every acceptable response of a row, the gold one first; empty if the row has no column with responses."""
    column = next((name for name in RESPONSES if columns.get(name) is not None), None)
    return () if column is None else _texts(columns[column], column, origin)


def _from_pair(row: _Columns, ignored: Collection[str]) -> tuple[list[Message], tuple[str, ...], str]:
    """Messages, references and context of a row with a prompt and perhaps a response."""
    origin = row.origin
    prompt_column, prompt = row.take(PROMPTS)
    if prompt is None:
        if empty := [name for name in row.names if name in (*MESSAGES, *PROMPTS)]:
            raise InputError(f"{origin} has nothing in the column {empty[0]}; give it a text or remove the record")
        besides = " beside those of data.ignore_columns" if ignored else ""
        names = printable_list(row.names) if row.names else "(none)"
        raise _UnknownForm(f"{origin} has the columns {names}{besides}, which are not understood; understood are {UNDERSTOOD_COLUMNS}")
    response_column, response = row.take(RESPONSES)
    context = ""
    if isinstance(prompt, list | tuple):
        messages = [_unlearnt(message) for message in parse_messages(prompt, prompt_column, origin, ignored)]
    else:
        if not check_text(prompt, prompt_column, origin).strip():
            raise InputError(f"{origin} has an empty {prompt_column}; give it a text or remove the record")
        context_column, context = row.take(CONTEXTS)
        context = "" if context is None else check_text(context, context_column, origin)
        _, history = row.take(("history",))
        messages = [*parse_history([] if history is None else history, origin), Message("user", prompt)]
    if messages[-1].role == "assistant":
        raise InputError(f"{origin} has a {prompt_column} that ends with an assistant turn; move that turn to the response")
    if _is_messages(response):
        return [*messages, *parse_messages(response, response_column, origin, ignored)], (), context if context.strip() else ""
    references = () if response is None else _texts(response, response_column, origin)
    answer = [Message("assistant", text) for text in references[:1]]
    return [*messages, *answer], references, context if context.strip() else ""


def _unlearnt(message: Message) -> Message:
    """TRL learns the completion alone, so answers inside a prompt have the weight 0."""
    return Message(message.role, message.content, message.extra, 0.0 if message.role == "assistant" else message.weight)


def _is_messages(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(item, dict) for item in value)


def _texts(value: Any, column: str, origin: str) -> tuple[str, ...]:
    return tuple(check_text(text, column, origin) for text in (value if isinstance(value, list | tuple) else [value]))
