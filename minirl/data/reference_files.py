"""Reads data that the reference code tokenised: `.bin` files of token ids, each with an `.idx` index.

A `.bin` file holds records of ids end to end. Its index beside it says where each record ends. Format of an index (microsoft/LMOps,
minillm/data_utils/indexed_dataset.py, class MMapIndexedDataset, at commit 9d02b66), little-endian:

    magic "MMIDIDX\\0\\0", u64 version 1, u8 type code (8: uint16, 4: int32), u64 records n, u64 documents m,
    int32 sizes [n], in ids; int64 offsets [n], in bytes of the .bin; int64 documents [m], which are not used here

The type is uint16 if the tokenizer has fewer than 65,500 ids. The largest value of the type is no id: it separates prompt and response.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from minirl.data.conversation import Conversation, Message
from minirl.data.record_files import recognise_file
from minirl.data.records import parse_references, read_rows
from minirl.data.values import check_text, printable, printable_list, reason_of
from minirl.data.vocab import highest_token_id
from minirl.errors import InputError

HEADER = struct.Struct("<9sQBQQ")
MAGIC, VERSION = b"MMIDIDX\0\0", 1
TYPES = {8: np.dtype("<u2"), 4: np.dtype("<i4")}
REFERENCE_SPLITS = {"train": "train", "validation": "valid", "test": "test"}  # our name of a split -> the one in the file names
_IDS_PER_SCAN = 2**24


@dataclass(frozen=True)
class TokenFile:
    """One `.bin` with its index. tokens: uint16 or int32 [total], memory-mapped; ends: int64 [n], the end of each record in `tokens`."""

    path: Path
    tokens: np.ndarray
    ends: np.ndarray

    @property
    def separator(self) -> int:
        """The value between a prompt and its response."""
        return int(np.iinfo(self.tokens.dtype).max)

    def __len__(self) -> int:
        """The number of records."""
        return len(self.ends)

    def record(self, index: int) -> np.ndarray:
        return self.tokens[self.ends[index - 1] if index else 0 : self.ends[index]]


# --- sources and records ---


def is_tokenised_source(source: str) -> bool:
    """Whether a data source is a `.bin` file or a directory; directories are sources of `.bin` files only."""
    try:
        return source.endswith(".bin") or Path(source).is_dir()
    except (OSError, ValueError):  # a path that the system refuses, such as one that is too long
        return False


def tokenised_conversations(
    source: str, split: str, tokenizer: PreTrainedTokenizerBase, end_tokens: tuple[int, ...], limit: int | None = None
) -> list[Conversation]:
    """The first `limit` records of a `.bin` file or a directory of them: prompts, or prompts with responses.

    Splits and Rouge-L need their text. It comes from the rows beside the file (`train.jsonl` beside `train_0.bin`), or from decoding the
    ids if no rows exist. Raises InputError if the ids cannot belong to the tokenizer.
    """
    files = open_token_files(source, REFERENCE_SPLITS[split])
    for file in files:
        check_token_ids(file, highest_token_id(tokenizer) + 1, separators=True)
    texts = _texts_beside(files)
    conversations = []
    for origin, tokens in islice(iterate_records(files), limit):
        prompt, response = _split_at_separator(tokens, files[0].separator, origin)
        text, references = next(texts) if texts else (None, ())
        if text is None:
            text = tokenizer.decode(prompt)
        if response and not references:
            references = (tokenizer.decode(response, skip_special_tokens=True),)
        messages = (Message("user", text), *([Message("assistant", references[0])] if response else []))
        conversations.append(Conversation(messages, references, origin=origin, tokens=(prompt, response)))
    if not conversations:
        raise InputError(f"the data set {source} is empty; give one with at least one record")
    _check_end_tokens(source, conversations, end_tokens)
    return conversations


def open_token_files(source: str, split: str) -> list[TokenFile]:
    """All shards of `source`, opened. split: the reference's name of it. Raises InputError as `shard_paths` and `open_token_file` do."""
    try:
        return [open_token_file(path) for path in shard_paths(source, split)]
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {printable(source, 300)} as files of token ids: {reason_of(error)}; check its path") from None


def iterate_records(files: list[TokenFile]) -> Iterator[tuple[str, np.ndarray]]:
    """The origin and the ids of every record, file after file."""
    for file in files:
        for index in range(len(file)):
            yield f"{file.path} record {index}", file.record(index)


def check_token_ids(file: TokenFile, vocabulary: int, *, separators: bool, first: int | None = None) -> None:
    """Raises InputError if an id is not below `vocabulary`.

    separators: whether separators may occur. first: checks only so many ids from the beginning; None: all.
    """
    for start in range(0, len(file.tokens) if first is None else first, _IDS_PER_SCAN):
        ids = np.asarray(file.tokens[start : start + _IDS_PER_SCAN])[: None if first is None else first - start]
        wrong = (ids >= vocabulary) | (ids < 0)
        if separators:
            wrong &= ids != file.separator
        if wrong.any():
            raise InputError(_describe_wrong_id(file, start + int(wrong.argmax()), vocabulary, separators))


def _describe_wrong_id(file: TokenFile, position: int, vocabulary: int, separators: bool) -> str:
    token, record = int(file.tokens[position]), int(np.searchsorted(file.ends, position, side="right"))
    if token == file.separator and not separators:
        return f"{file.path} record {record} holds a prompt and a response, and plain text is wanted; give the file as data.train instead"
    return (
        f"{file.path} record {record} has the token id {token}, and the tokenizer has ids below {vocabulary}; the file was written with "
        "another tokenizer, so tokenise the data again or use the models that it was made for"
    )


def _split_at_separator(tokens: np.ndarray, separator: int, origin: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Prompt and response; the response is empty if the record is only a prompt."""
    positions = np.flatnonzero(tokens == separator)
    if len(positions) > 1:
        raise InputError(
            f"{origin} has {len(positions)} separators ({separator}), but only one may stand between prompt and response; tokenise it again"
        )
    end = int(positions[0]) if len(positions) else len(tokens)
    return tuple(tokens[:end].tolist()), tuple(tokens[end + 1 :].tolist())


def _check_end_tokens(source: str, conversations: list[Conversation], end_tokens: tuple[int, ...]) -> None:
    responses = [conversation.tokens[1] for conversation in conversations if conversation.tokens[1]]
    if responses and not any(response[-1] in end_tokens for response in responses):
        raise InputError(
            f"none of the responses of {source} ends with an end token of the models ({', '.join(map(str, end_tokens))}), so the student "
            "would not learn to end; the file was written with another tokenizer or without end tokens, so tokenise the data again"
        )


# --- the text of the records ---


def text_rows_path(first_shard: Path) -> Path:
    """Where the reference writes the text of the records, one row for each: `train.jsonl` beside `train_0.bin`."""
    return first_shard.with_name(f"{_shard_prefix(first_shard) or first_shard.stem}.jsonl")


def _texts_beside(files: list[TokenFile]) -> Iterator[tuple[str | None, tuple[str, ...]]] | None:
    """Prompt and references of each record; None if no file with rows exists."""
    path = text_rows_path(files[0].path)
    if not path.is_file():
        return None
    rows, records = sum(1 for _ in read_rows(str(path))), sum(len(file) for file in files)
    if rows != records:
        raise InputError(
            f"{path} has {rows} rows and the .bin files beside it {records} records; they do not belong together, so remove one of them"
        )
    return ((_prompt_text(columns, origin), parse_references(columns, origin)) for origin, columns in read_rows(str(path)))


def _prompt_text(columns: dict[str, Any], origin: str) -> str | None:
    return check_text(columns["prompt"], "prompt", origin) if isinstance(columns.get("prompt"), str) else None


# --- files on disk ---


def shard_paths(source: str, split: str) -> list[Path]:
    """The `.bin` files of `source`: `<split>_0.bin` of a directory, or the named file, and the further shards of a file that ends in `_0`.

    Raises InputError if the directory has no such file.
    """
    first = Path(source)
    if first.is_dir():
        first = first / f"{split}_0.bin"
        if not first.is_file():
            present = sorted(file.name for file in Path(source).iterdir() if file.suffix == ".bin" or recognise_file(file))
            raise InputError(
                f"{printable(source, 300)} is a directory and holds no {first.name}; "
                + (f"name one of its files, {printable_list(present)}" if present else "it holds no data file at all, so name another one")
            )
    shards = [first]
    if prefix := _shard_prefix(first):
        while (following := first.with_name(f"{prefix}_{len(shards)}.bin")).is_file():
            shards.append(following)
    return shards


def _shard_prefix(path: Path) -> str | None:
    """`train` of `train_0.bin`; None for a file that is not the first of several."""
    prefix, _, number = path.stem.rpartition("_")
    return prefix if prefix and number == "0" else None


def open_token_file(path: Path) -> TokenFile:
    """Maps one `.bin` file into memory. Raises InputError if the file or its index is cut off or not in the reference's format."""
    sizes, dtype = _read_index(path.with_suffix(".idx"))
    ends = np.cumsum(sizes, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    try:
        file_bytes = path.stat().st_size
    except OSError as error:
        raise InputError(f"cannot read the data file {path}: {error.strerror}") from None
    if file_bytes != total * dtype.itemsize:
        raise InputError(
            f"{path} has {file_bytes} bytes, but its index describes {total * dtype.itemsize}; the two do not belong together, or one of "
            "them is cut off, so copy both again"
        )
    tokens = np.memmap(path, dtype, mode="r") if total else np.empty(0, dtype)
    return TokenFile(path, tokens, ends)


def _read_index(path: Path) -> tuple[np.ndarray, np.dtype]:
    """The sizes of the records, int32 [n], and the type of their ids."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the index {path}, which must stand beside its .bin file: {error.strerror}") from None
    not_an_index = f"{path} is not an index as the reference writes it"
    if len(content) < HEADER.size or not content.startswith(MAGIC):
        raise InputError(f"{not_an_index}: it does not begin with MMIDIDX")
    _, version, code, records, documents = HEADER.unpack_from(content)
    if version != VERSION or code not in TYPES:
        raise InputError(
            f"{not_an_index}: it has version {version} and type code {code}, understood are version 1 with uint16 (8) or int32 (4)"
        )
    if len(content) != HEADER.size + 12 * records + 8 * documents:
        raise InputError(f"{path} has {len(content)} bytes, not as many as its {records} records need; it is cut off, so copy it again")
    sizes = np.frombuffer(content, "<i4", records, HEADER.size)
    offsets = np.frombuffer(content, "<i8", records, HEADER.size + sizes.nbytes)
    end_offsets = np.cumsum(sizes, dtype=np.int64) * TYPES[code].itemsize
    if (sizes < 0).any() or not np.array_equal(offsets[1:], end_offsets[:-1]) or (records and offsets[0] != 0):
        raise InputError(f"{not_an_index}: its records do not lie end to end")
    return sizes, TYPES[code]
