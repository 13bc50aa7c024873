"""Token ids as the reference keeps them on disk: `.bin`, records of ids end to end, and beside it `.idx`, which says where each begins.

An index (microsoft/LMOps, minillm/data_utils/indexed_dataset.py, class MMapIndexedDataset, at commit 9d02b66), little-endian:

    magic "MMIDIDX\\0\\0", u64 version 1, u8 type code (8: uint16, 4: int32), u64 records n, u64 documents m,
    int32 sizes [n], in ids; int64 places [n], in bytes of the .bin; int64 documents [m], which nothing here asks for

The type is uint16 where the tokenizer has fewer than 65,500 ids. Its largest value is no id: it stands between prompt and response.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from minirl.data.conversation import Conversation
from minirl.data.records import read_rows, references_of
from minirl.data.vocab import highest_id
from minirl.errors import InputError

HEADER = struct.Struct("<9sQBQQ")
MAGIC, VERSION = b"MMIDIDX\0\0", 1
TYPES = {8: np.dtype("<u2"), 4: np.dtype("<i4")}
_IDS_PER_SCAN = 2**24


@dataclass(frozen=True)
class TokenFile:
    """One `.bin` with its index. tokens: uint16 or int32 [total], mapped from the disk; ends: int64 [n], where each record ends."""

    path: Path
    tokens: np.ndarray
    ends: np.ndarray

    @property
    def separator(self) -> int:
        """What stands between a prompt and its response."""
        return int(np.iinfo(self.tokens.dtype).max)

    def __len__(self) -> int:
        return len(self.ends)

    def record(self, index: int) -> np.ndarray:
        return self.tokens[self.ends[index - 1] if index else 0 : self.ends[index]]


def is_indexed(source: str) -> bool:
    """Whether a data source is a `.bin` file, or a directory that can only hold such."""
    return source.endswith(".bin") or Path(source).is_dir()


def shards_of(source: str, split: str) -> list[Path]:
    """The files of `source`: a directory's `<split>_0.bin`, or the file that it names; after one that ends in `_0`, its further shards.

    Raises InputError where there is none.
    """
    first = Path(source)
    if first.is_dir():
        first = first / f"{split}_0.bin"
        if not first.is_file():
            there = sorted(file.name for file in Path(source).glob("*.bin"))
            raise InputError(
                f"{source} holds no {first.name}; "
                + (f"name one of its files, {', '.join(there[:5])}" if there else "it holds no .bin at all")
            )
    found = [first]
    if prefix := _shard_prefix(first):
        while (following := first.with_name(f"{prefix}_{len(found)}.bin")).is_file():
            found.append(following)
    return found


def rows_beside(first: Path) -> Path:
    """Where the reference writes the text of the records, one row each: `train.jsonl` beside `train_0.bin`."""
    return first.with_name(f"{_shard_prefix(first) or first.stem}.jsonl")


def open_indexed(path: Path) -> TokenFile:
    """Map one `.bin` by its index. Raises InputError where the two are not what the reference writes, or are cut off."""
    sizes, dtype = _read_index(path.with_suffix(".idx"))
    ends = np.cumsum(sizes, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    try:
        bytes_there = path.stat().st_size
    except OSError as error:
        raise InputError(f"cannot read the data file {path}: {error.strerror}") from None
    if bytes_there != total * dtype.itemsize:
        raise InputError(
            f"{path} has {bytes_there} bytes and its index speaks of {total * dtype.itemsize}; the two do not belong together, or one of "
            "them is cut off: copy both again"
        )
    tokens = np.memmap(path, dtype, mode="r") if total else np.empty(0, dtype)
    return TokenFile(path, tokens, ends)


def check_ids(file: TokenFile, vocabulary: int, *, separators: bool, among: int | None = None) -> None:
    """Raises InputError where an id is not below `vocabulary`. separators: they may occur; among: only the first so many are read."""
    for start in range(0, len(file.tokens) if among is None else among, _IDS_PER_SCAN):
        part = np.asarray(file.tokens[start : start + _IDS_PER_SCAN])[: None if among is None else among - start]
        wrong = (part >= vocabulary) | (part < 0)
        if separators:
            wrong &= part != file.separator
        if wrong.any():
            place = start + int(wrong.argmax())
            raise InputError(_foreign_id(file, place, vocabulary, separators))


def _foreign_id(file: TokenFile, place: int, vocabulary: int, separators: bool) -> str:
    token, record = int(file.tokens[place]), int(np.searchsorted(file.ends, place, side="right"))
    if token == file.separator and not separators:
        return f"{file.path} record {record} holds a prompt and a response, and plain text is wanted; give the file as data.train instead"
    return (
        f"{file.path} record {record} has the token id {token}, and the tokenizer has ids below {vocabulary}; the file was written with "
        "another tokenizer, so tokenise the data anew or take the models that it was made for"
    )


def _read_index(path: Path) -> tuple[np.ndarray, np.dtype]:
    """Sizes of the records, int32 [n], and the type of their ids."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the index {path}, which must stand beside its .bin file: {error.strerror}") from None
    foreign = f"{path} is not an index as the reference writes it"
    if len(content) < HEADER.size or not content.startswith(MAGIC):
        raise InputError(f"{foreign}: it does not begin with MMIDIDX")
    _, version, code, records, documents = HEADER.unpack_from(content)
    if version != VERSION or code not in TYPES:
        raise InputError(f"{foreign}: it has version {version} and type code {code}, understood are version 1 with uint16 (8) or int32 (4)")
    if len(content) != HEADER.size + 12 * records + 8 * documents:
        raise InputError(f"{path} has {len(content)} bytes, not as many as its {records} records need; it is cut off: copy it again")
    sizes = np.frombuffer(content, "<i4", records, HEADER.size)
    places = np.frombuffer(content, "<i8", records, HEADER.size + sizes.nbytes)
    ends = np.cumsum(sizes, dtype=np.int64) * TYPES[code].itemsize
    if (sizes < 0).any() or not np.array_equal(places[1:], ends[:-1]) or (records and places[0] != 0):
        raise InputError(f"{foreign}: its records do not lie end to end")
    return sizes, TYPES[code]


def _shard_prefix(path: Path) -> str | None:
    prefix, _, number = path.stem.rpartition("_")
    return prefix if prefix and number == "0" else None


def open_all(source: str, split: str) -> list[TokenFile]:
    return [open_indexed(path) for path in shards_of(source, split)]


def records_of(files: list[TokenFile]) -> Iterator[tuple[str, np.ndarray]]:
    """Every record with where it stands, shard after shard."""
    for file in files:
        for index in range(len(file)):
            yield f"{file.path} record {index}", file.record(index)


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
