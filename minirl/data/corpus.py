"""Plain text for the pre-training loss, as blocks of tokens.

Each document is closed by the end token; all are joined and cut into blocks of one length.
"""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from minirl.config.data import CorpusConfig
from minirl.data.record_files import describe_assumption, looks_like, open_file, unreadable
from minirl.data.records import read_rows
from minirl.data.reference_files import check_token_ids, is_tokenised_source, open_token_files
from minirl.data.values import check_text, printable, printable_list
from minirl.data.vocab import check_ids, highest_token_id
from minirl.errors import InputError
from minirl.types import TokenSequence

_DOCUMENTS_PER_CALL = 256


@dataclass(frozen=True)
class Corpus:
    """blocks: int32 or uint16 [n, block_tokens], to learn from. test_blocks: the held-out ones, from the end of the text.
    report: `documents` read, `blocks`, `test_blocks`, `tokens_dropped` (the last, incomplete block).

    In a tokenised source, `documents` counts its records, which are pieces of documents.
    """

    blocks: np.ndarray
    test_blocks: np.ndarray
    report: dict[str, int]

    def __len__(self) -> int:
        """The number of blocks to learn from."""
        return len(self.blocks)

    def block(self, index: int) -> TokenSequence:
        """Block `index` with every token but the first, which nothing predicts, as a target."""
        return _sequence(self.blocks[index])

    def held_out(self) -> list[TokenSequence]:
        """The test blocks, in the form of `block`."""
        return [_sequence(block) for block in self.test_blocks]


def load_corpus(config: CorpusConfig, tokenizer: PreTrainedTokenizerBase, vocabulary: int | None = None) -> Corpus:
    """Reads and tokenises until the source ends or `max_blocks` are full. Raises InputError if no block is left to learn from.

    vocabulary: the number of ids that student and teacher share, of which a text may use no others; None: not checked.
    """
    if is_tokenised_source(config.source):
        return _load_tokenised(config, tokenizer, vocabulary)
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end token to close the documents of the corpus with; give it an eos_token")
    needed = config.max_blocks * config.block_tokens if config.max_blocks else None
    pieces, total, documents = [], 0, 0
    for tokens in _tokenised(read_documents(config.source, streaming=needed is not None), tokenizer):
        pieces.append(tokens)
        total, documents = total + len(tokens), documents + 1
        if vocabulary is not None:
            check_ids([tokens.max()], vocabulary, tokenizer, f"document {documents} of the corpus {config.source}")
        if needed is not None and total >= needed:
            break
    count = _block_count(config, total)
    return _corpus_of(config, np.concatenate(pieces)[: count * config.block_tokens], documents, total)


def _load_tokenised(config: CorpusConfig, tokenizer: PreTrainedTokenizerBase, vocabulary: int | None) -> Corpus:
    """The blocks that the reference wrote, with their end tokens, joined and cut again. A single file stays on the disk."""
    files = open_token_files(config.source, "train")
    total = sum(len(file.tokens) for file in files)
    needed, pieces = _block_count(config, total) * config.block_tokens, []
    for file in files:
        used = min(len(file.tokens), needed - sum(map(len, pieces)))
        check_token_ids(file, min(highest_token_id(tokenizer) + 1, vocabulary or 2**31), separators=False, first=used)
        pieces.append(file.tokens[:used])
    stream = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return _corpus_of(config, stream, sum(len(file) for file in files), total)


def _corpus_of(config: CorpusConfig, stream: np.ndarray, documents: int, total: int) -> Corpus:
    """Cuts a stream of whole blocks, out of `total` tokens read, into the blocks to learn from and the held-out ones."""
    blocks = stream.reshape(-1, config.block_tokens)
    learnt = len(blocks) - config.test_blocks
    report = {"documents": documents, "blocks": learnt, "test_blocks": config.test_blocks, "tokens_dropped": total - len(stream)}
    return Corpus(blocks[:learnt], blocks[learnt:], report)


def _block_count(config: CorpusConfig, tokens: int) -> int:
    count = min(tokens // config.block_tokens, config.max_blocks or tokens)
    if count == 0:
        raise InputError(
            f"the corpus {config.source} has {tokens} tokens, fewer than one block; give more text, or a corpus.block_tokens "
            f"below {config.block_tokens}"
        )
    if count <= config.test_blocks:
        raise InputError(
            f"the corpus {config.source} has {count} blocks, and corpus.test_blocks = {config.test_blocks} leaves none of them to learn "
            "from; lower it, or give more text"
        )
    return count


def _sequence(block: np.ndarray) -> TokenSequence:
    tokens = block.astype(np.int64)
    return TokenSequence(tokens, np.arange(len(tokens)) > 0)


def _tokenised(documents: Iterator[str], tokenizer: PreTrainedTokenizerBase) -> Iterable[np.ndarray]:
    while batch := list(islice(documents, _DOCUMENTS_PER_CALL)):
        for tokens in tokenizer(batch, add_special_tokens=False, return_attention_mask=False, verbose=False).input_ids:
            yield np.array([*tokens, tokenizer.eos_token_id], np.int32)


def read_documents(source: str, streaming: bool = False) -> Iterator[str]:
    """The texts of `source`: a .txt file is one document; each row of another file or a hub data set has a column `text`.

    Other columns are not read: plain text has no other use for them.
    """
    if source.startswith("embedded:"):
        if source != "embedded:pydoc":
            raise InputError(f"{source} is not known; the embedded corpus is embedded:pydoc")
        from minirl.data.embedded.assets import pydoc_texts

        yield from pydoc_texts()
    elif source.lower().endswith((".txt", ".txt.gz")):
        yield _read_text(Path(source))
    else:
        for origin, columns in read_rows(source, streaming):
            if not isinstance(columns.get("text"), str):
                raise InputError(
                    f"{origin} has no text in a column `text`, which a corpus needs; its columns are {printable_list(columns) or '(none)'}"
                    f"{describe_assumption(Path(source))}"
                )
            if check_text(columns["text"], "text", origin).strip():
                yield columns["text"]


def _read_text(path: Path) -> str:
    try:
        with open_file(path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8-sig").read()
    except Exception as error:  # a damaged .gz makes its reader fail in many ways
        raise unreadable(path, error) from None
    if looks_like(path):  # it can be read, but nobody wants to learn a pointer or zeros
        raise InputError(f"{printable(path, 300)} is no plain text{describe_assumption(path)}")
    return text
