"""The corpus: documents joined and cut into blocks, held-out blocks, and the sentence for each unusable source."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minirl.config.data import CorpusConfig
from minirl.data.corpus import load_corpus, read_documents
from minirl.errors import InputError
from tests.minirl.data.chatml import chatml_tokenizer

TOKENIZER = chatml_tokenizer()
END = TOKENIZER.eos_token_id


def write(path, documents):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    return str(path)


@given(st.lists(st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1), min_size=1, max_size=400), st.integers(2, 9))
def test_blocks_hold_every_document_and_its_end_token_in_order(tmp_path_factory, documents, block_tokens):
    source = write(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", documents)
    stream = [token for text in documents for token in [*TOKENIZER.encode(text, add_special_tokens=False), END]]
    if len(stream) < block_tokens:
        return
    corpus = load_corpus(CorpusConfig(source=source, block_tokens=block_tokens, test_blocks=0), TOKENIZER)
    used = len(stream) // block_tokens * block_tokens
    assert corpus.blocks.shape == (used // block_tokens, block_tokens)
    assert corpus.blocks.ravel().tolist() == stream[:used]
    assert corpus.report == {"documents": len(documents), "blocks": len(corpus), "test_blocks": 0, "tokens_dropped": len(stream) - used}


def test_every_token_of_a_block_but_the_first_is_a_target(tmp_path):
    corpus = load_corpus(CorpusConfig(source=write(tmp_path / "corpus.jsonl", ["abcdefgh"] * 3), block_tokens=5, test_blocks=0), TOKENIZER)
    sequence = corpus.block(1)
    assert sequence.tokens.dtype == np.int64 and sequence.tokens.tolist() == corpus.blocks[1].tolist()
    assert sequence.is_target.tolist() == [False, True, True, True, True]


def test_the_last_blocks_are_held_out(tmp_path):
    source = write(tmp_path / "corpus.jsonl", ["abcdefgh" * 8] * 4)
    all_blocks = load_corpus(CorpusConfig(source=source, block_tokens=5, test_blocks=0), TOKENIZER).blocks
    corpus = load_corpus(CorpusConfig(source=source, block_tokens=5, test_blocks=2), TOKENIZER)
    assert corpus.blocks.tolist() == all_blocks[:-2].tolist() and corpus.test_blocks.tolist() == all_blocks[-2:].tolist()
    assert (len(corpus), corpus.report["blocks"], corpus.report["test_blocks"]) == (len(all_blocks) - 2, len(all_blocks) - 2, 2)
    assert [block.tokens.tolist() for block in corpus.held_out()] == all_blocks[-2:].tolist()
    with pytest.raises(InputError, match=rf"has {len(all_blocks)} blocks, and corpus.test_blocks = {len(all_blocks)} leaves none"):
        load_corpus(CorpusConfig(source=source, block_tokens=5, test_blocks=len(all_blocks)), TOKENIZER)


def test_reading_stops_once_enough_blocks_are_full(tmp_path):
    path = tmp_path / "corpus.jsonl"
    write(path, ["abcdefgh"] * 600)
    with path.open("a") as file:
        file.write("this line is never reached\n")
    corpus = load_corpus(CorpusConfig(source=str(path), block_tokens=4, max_blocks=3, test_blocks=0), TOKENIZER)
    assert len(corpus) == 3 and corpus.report["documents"] < 5
    with pytest.raises(InputError, match="line 601 is not valid JSON"):
        load_corpus(CorpusConfig(source=str(path), block_tokens=4), TOKENIZER)


def test_a_text_file_is_one_document_and_rows_are_one_each(tmp_path):
    (tmp_path / "corpus.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", " ", "two"]}), tmp_path / "corpus.parquet")
    assert list(read_documents(str(tmp_path / "corpus.txt"))) == ["one\n\ntwo\n"]
    assert list(read_documents(str(tmp_path / "corpus.parquet"))) == ["one", "two"], "blank documents are skipped"


def test_the_embedded_corpus_is_the_manual_of_the_running_python():
    documents = list(read_documents("embedded:pydoc"))
    assert any(text.startswith('The "while" statement') for text in documents)
    assert 300_000 < sum(len(text) for text in documents) < 2_000_000


def test_a_corpus_smaller_than_a_block_is_refused(tmp_path):
    config = CorpusConfig(source=write(tmp_path / "corpus.jsonl", ["a"]), block_tokens=8)
    with pytest.raises(InputError, match=r"corpus\.jsonl has 2 tokens, fewer than one block; .* below 8"):
        load_corpus(config, TOKENIZER)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "cannot read the data file .*missing.txt: No such file"),
        ("missing.jsonl", None, "cannot read the data file .*missing.jsonl: No such file"),
        ("binary.txt", b"\xff\xfe", "binary.txt is not UTF-8 text"),
        ("other.jsonl", b'{"prompt": "a"}', "line 1 has no text in a column `text`, .*its columns are prompt"),
        ("broken.jsonl", b'{"text": "a"}\n{', "line 2 is not valid JSON"),
        ("empty.jsonl", b"", "has 0 tokens, fewer than one block"),
        ("half.jsonl", b'{"text": "cut \\ud83d"}', r"line 1 has half a character \(\\ud83d"),
        ("corpus.csv", b"text", "has 0 tokens, fewer than one block"),
        (
            "cut.txt.gz",
            b"\x1f\x8b\x08\0",
            "cut.txt.gz is not readable: .*it was read as plain text in gzip, because its name ends in .txt.gz",
        ),
        ("corpus.xml", b"text", "cannot tell what the data source"),
    ],
)
def test_an_unusable_corpus_is_one_sentence(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_corpus(CorpusConfig(source=str(tmp_path / name), block_tokens=8), TOKENIZER)


def test_an_unknown_embedded_corpus_and_a_tokenizer_without_end_are_refused():
    with pytest.raises(InputError, match="embedded:nothing is not known"):
        load_corpus(CorpusConfig(source="embedded:nothing"), TOKENIZER)
    with pytest.raises(InputError, match="no end token"):
        load_corpus(CorpusConfig(source="embedded:pydoc"), chatml_tokenizer(eos=None))
