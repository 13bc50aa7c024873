"""Instruction records that are tokenised already, as the reference writes them: their ids are used as they are."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from minirl.errors import InputError
from minirl.indexed import TokenFile, check_ids, open_all, records_of, rows_beside
from minirl.records import Conversation, read_rows, references_of
from minirl.vocab import highest_id

# A split as we call it, and as the reference names its files.
REFERENCE_SPLITS = {"train": "train", "validation": "valid", "test": "test"}


def tokenised_conversations(
    source: str, split: str, tokenizer: PreTrainedTokenizerBase, end_tokens: tuple[int, ...], limit: int | None = None
) -> list[Conversation]:
    """The records of a `.bin` file or a directory of them, the first `limit` only: prompts, or prompts with responses.

    Their text, which splits and Rouge-L go by, is that of the rows beside them (`train.jsonl` beside `train_0.bin`); without such, what
    the ids decode to. Raises InputError where the ids cannot be the tokenizer's.
    """
    files = open_all(source, REFERENCE_SPLITS[split])
    for file in files:
        check_ids(file, highest_id(tokenizer) + 1, separators=True)
    texts = _texts_beside(files)
    found = []
    for origin, tokens in islice(records_of(files), limit):
        prompt, response = _divided(tokens, files[0].separator, origin)
        text, references = next(texts) if texts else (None, ())
        if text is None:
            text = tokenizer.decode(prompt)
        if response and not references:
            references = (tokenizer.decode(response, skip_special_tokens=True),)
        messages = (("user", text), *([("assistant", references[0])] if response else []))
        found.append(Conversation(messages, references, origin=origin, tokens=(prompt, response)))
    if not found:
        raise InputError(f"the data set {source} is empty; give one with at least one record")
    _check_ends(source, found, end_tokens)
    return found


def _divided(tokens: np.ndarray, separator: int, origin: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Prompt and response; the response is empty where the record is a prompt alone."""
    places = np.flatnonzero(tokens == separator)
    if len(places) > 1:
        raise InputError(f"{origin} has {len(places)} separators ({separator}), and one at most can stand between prompt and response")
    end = int(places[0]) if len(places) else len(tokens)
    return tuple(tokens[:end].tolist()), tuple(tokens[end + 1 :].tolist())


def _texts_beside(files: list[TokenFile]) -> Iterator[tuple[str | None, tuple[str, ...]]] | None:
    """Prompt and references of each record; None where no rows are there."""
    path = rows_beside(files[0].path)
    if not path.is_file():
        return None
    rows, records = _count(path), sum(len(file) for file in files)
    if rows != records:
        raise InputError(
            f"{path} has {rows} rows and the .bin files beside it {records} records; they are not of one piece: remove the one or the other"
        )
    return ((_prompt_of(columns), references_of(columns, origin)) for origin, columns in read_rows(str(path)))


def _prompt_of(columns: dict[str, Any]) -> str | None:
    return columns["prompt"] if isinstance(columns.get("prompt"), str) else None


def _count(path: Path) -> int:
    return sum(1 for _ in read_rows(str(path)))


def _check_ends(source: str, found: list[Conversation], end_tokens: tuple[int, ...]) -> None:
    responses = [conversation.tokens[1] for conversation in found if conversation.tokens[1]]
    if responses and not any(response[-1] in end_tokens for response in responses):
        raise InputError(
            f"none of the responses of {source} ends with an end token of the models ({', '.join(map(str, end_tokens))}), so the student "
            "would not learn to end; the file was written with another tokenizer, or without end tokens"
        )
