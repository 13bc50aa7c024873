"""Reads instruction records from files, the Hugging Face hub and installed packages into Conversations."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from minirl.data.conversation import Conversation, Message
from minirl.errors import InputError

Row = tuple[str, dict[str, Any]]  # its origin ("train.jsonl line 3") and its columns

ROLES = ("system", "user", "assistant")
RESPONSE_COLUMNS = ("completion", "response", "output")
UNDERSTOOD_COLUMNS = (
    "messages; prompt with completion, response or output; instruction with input and output (Alpaca); "
    "instruction with context and response (Dolly)"
)
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.\[\]%:+-]+)?")
_OTHER_FORMATS = {".json", ".csv", ".tsv", ".txt", ".yml", ".yaml", ".arrow", ".gz", ".zst"}


def read_conversations(source: str, limit: int | None = None) -> list[Conversation]:
    """The first `limit` records of `source`, in its order (None: all). Raises InputError that names the first unusable record."""
    if source.startswith("embedded:"):
        from minirl.data.embedded.assets import embedded_conversations

        conversations = embedded_conversations(source)[:limit]
    else:
        conversations = [parse_record(columns, origin) for origin, columns in islice(read_rows(source), limit)]
    if not conversations:
        raise InputError(f"the data set {source} is empty; give one with at least one record")
    return conversations


def read_rows(source: str, streaming: bool = False) -> Iterator[Row]:
    """The rows of a .jsonl or .parquet file or of a hub data set. `streaming` reads a hub data set without downloading all of it."""
    path = Path(source)
    if path.suffix == ".jsonl":
        return _jsonl_rows(path)
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    if _HUB_NAME.fullmatch(source) and path.suffix not in _OTHER_FORMATS and not path.exists():
        return _hub_rows(source, streaming)
    raise InputError(
        f"cannot tell what the data source {source!r} is; give a .jsonl, .parquet or .bin file, or a hub data set as owner/name or "
        "owner/name:split"
    )


def _jsonl_rows(path: Path) -> Iterator[Row]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path} line {number}", _json_object(line, path, number)
    except OSError as error:
        raise InputError(f"cannot read the data file {path}: {error.strerror}") from None


def _json_object(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} line {number} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} line {number} holds {_type_name(value)}; each line must be a JSON object with the columns of one record")
    return value


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    if not path.is_file():
        raise InputError(f"cannot read the data file {path}: No such file; check its path")
    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches()
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            yield f"{path} row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file: {_first_line(error)}") from None


def _hub_rows(source: str, streaming: bool) -> Iterator[Row]:
    import datasets

    name, _, split = source.partition(":")
    try:  # an unknown name, a missing split, a private data set and a missing network raise exceptions of many types
        for number, row in enumerate(datasets.load_dataset(name, split=split or "train", streaming=streaming), start=1):
            yield f"{source} row {number}", dict(row)
    except Exception as error:
        raise InputError(
            f"cannot load the data set {source} from the Hugging Face hub ({_first_line(error)}); "
            "check its name, its split and the network, or give a local .jsonl or .parquet file"
        ) from None


def parse_record(columns: dict[str, Any], origin: str) -> Conversation:
    """One row as a Conversation; its columns decide the form. Raises InputError that names `origin`."""
    teacher = None if columns.get("teacher_id") is None else str(columns["teacher_id"])
    if columns.get("messages") is not None:
        return replace(_from_messages(columns["messages"], origin), teacher=teacher)
    for name in ("instruction", "prompt"):
        if columns.get(name) is not None:
            return replace(_from_pair(columns, name, origin), teacher=teacher)
    raise InputError(
        f"{origin} has the columns {', '.join(columns) or '(none)'}, which are not understood; understood are {UNDERSTOOD_COLUMNS}"
    )


def parse_references(columns: dict[str, Any], origin: str) -> tuple[str, ...]:
    """Every acceptable response of a row, the gold one first; empty if the row has no column with responses."""
    column = next((name for name in RESPONSE_COLUMNS if columns.get(name) is not None), None)
    if column is None:
        return ()
    values = columns[column] if isinstance(columns[column], list | tuple) else [columns[column]]
    return tuple(_text(text, column, origin) for text in values)


def _from_pair(columns: dict[str, Any], prompt_column: str, origin: str) -> Conversation:
    prompt = _text(columns[prompt_column], prompt_column, origin)
    if not prompt.strip():
        raise InputError(f"{origin} has an empty {prompt_column}; give it a text or remove the record")
    context_column = next((name for name in ("input", "context") if columns.get(name) is not None), None)
    context = _text(columns[context_column], context_column, origin) if context_column and prompt_column == "instruction" else ""
    references = parse_references(columns, origin)
    messages = (Message("user", prompt), *(Message("assistant", text) for text in references[:1]))
    return Conversation(messages, references, context if context.strip() else "", origin)


def _from_messages(value: Any, origin: str) -> Conversation:
    if not isinstance(value, list | tuple) or not value:
        raise InputError(
            f"{origin} has {_type_name(value)} as messages; it must be a list of role and content pairs with at least one user turn"
        )
    messages = tuple(_message(item, origin) for item in value)
    roles = [message.role for message in messages]
    if "user" not in roles or "system" in roles[1:]:
        raise InputError(f"{origin} has the roles {', '.join(roles)}; messages need a user turn, and a system prompt can only come first")
    if "assistant" in roles[: roles.index("user")]:
        raise InputError(f"{origin} begins with an assistant turn; a user turn must come before it")
    references = (messages[-1].content,) if roles[-1] == "assistant" else ()
    return Conversation(messages, references, origin=origin)


def _message(item: Any, origin: str) -> Message:
    if not isinstance(item, dict) or not {"role", "content"} <= item.keys():
        raise InputError(f"{origin} has a message without role and content: {str(item)[:80]}")
    if item["role"] not in ROLES:
        raise InputError(f"{origin} has the role {item['role']!r}; understood are {', '.join(ROLES)}")
    return Message(item["role"], _text(item["content"], "content", origin))


def _text(value: Any, column: str | None, origin: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{origin} has {_type_name(value)} in the column {column}, where a text belongs")
    return value


def _type_name(value: Any) -> str:
    if value is None:
        return "null"
    return {"list": "a list", "dict": "an object", "str": "a text", "bool": "a boolean"}.get(type(value).__name__, "a number")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
