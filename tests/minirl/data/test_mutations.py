"""Random mutations of valid records and files of every format end in examples or in an InputError, never in another exception."""

import copy
import gzip
import json
import random
import shutil
import string
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minirl.config.data import CorpusConfig, DataConfig
from minirl.config.reader import validate_config
from minirl.data.corpus import load_corpus
from minirl.data.examples import load_data
from minirl.data.templates import end_tokens
from minirl.errors import InputError
from tests.minirl.data.chatml import TEMPLATE, chatml_tokenizer
from tests.minirl.data.reference_writer import write_split
from tests.minirl.data.test_record_files import CONTENTS

FIELDS = "message['content'] + (message.name or '') + ((message.tool_calls or []) | string)"
TOKENIZER = chatml_tokenizer(template="{{ tools or '' }}" + TEMPLATE.replace("message['content']", FIELDS))
ENDS = end_tokens(TOKENIZER)
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "Ann"},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "weight": 0},
    {"role": "tool", "content": "sun", "tool_call_id": "1"},
    {"role": "assistant", "content": "yes", "reasoning_content": "so", "weight": 1},
]
RECORDS = [
    {"messages": TURNS, "tools": [{"name": "f", "parameters": {"a": "b"}}], "teacher_id": "t"},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "yes"}], "system": "Be brief.", "tools": "[]"},
    {"instruction": "Hi", "input": "there", "output": ["yes", "no"], "history": [["a", "b"]], "system": "Be brief."},
    {"prompt": TURNS[:2], "completion": TURNS[4:]},
    {"question": "Hi", "answer": "yes"},
    {"text": "a document"},
]
ODD_VALUES = [None, True, 0, -1, 0.5, float("nan"), float("inf"), 10**400, "", " ", "\ud83d", "\0", "<|im_end|>", "x" * 999, "user", "gpt"]
ODD_VALUES += ["[", '{"a": 1}', [], {}, [None], [[]], {"": ""}, {"a": None}, [["a", "b"]], {"role": 1}]
ODD_VALUES += [[{"role": "user", "content": "a"}], [{"from": "gpt", "value": "a"}]]
ODD = st.sampled_from(ODD_VALUES).map(copy.deepcopy)
NAMES = st.sampled_from(
    ["messages", "prompt", "output", "weight", "role", "content", "tool_calls", "history", "tools", "teacher_id", "", "\ud83d"]
)


@st.composite
def mutated(draw) -> list:
    """A record in which up to three values, at any depth, were replaced, removed, renamed, doubled or added."""
    record = [copy.deepcopy(draw(st.sampled_from(RECORDS)))]
    for _ in range(draw(st.integers(1, 3))):
        place = record
        for _ in range(draw(st.integers(0, 5))):
            children = [
                child for child in (place.values() if isinstance(place, dict) else place) if isinstance(child, dict | list) and child
            ]
            if not children:
                break
            place = draw(st.sampled_from(children))
        key = draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
        change = draw(st.sampled_from(["replace", "remove", "rename", "nest", "add"]))
        if change == "remove" and len(place) > 1:
            del place[key]
        elif change == "rename" and isinstance(place, dict):
            place[draw(NAMES)] = place.pop(key)
        elif change == "add" and isinstance(place, dict):
            place[draw(NAMES)] = draw(ODD)
        elif change == "nest":
            place[key] = [place[key]] if draw(st.booleans()) else {"content": place[key]}
        else:
            place[key] = draw(ODD)
    return record[0]


def read(source: Path, template: str = "chat", ignored: tuple[str, ...] = ()) -> list[str]:
    """Reads a source as instruction data and as a corpus, and returns the sentences of the refusals."""
    sentences, splits = [], dict.fromkeys(("train", "validation", "test"), str(source))
    data = splits | {"template": template, "ignore_columns": list(ignored)}
    corpus = {"source": str(source), "block_tokens": 2, "test_blocks": 0}
    for load in (
        lambda: load_data(validate_config(DataConfig, data), TOKENIZER, ENDS),
        lambda: load_corpus(validate_config(CorpusConfig, corpus), TOKENIZER),
    ):
        try:
            load()
        except InputError as error:
            sentences.append(str(error))
    for sentence in sentences:
        sentence.encode()
        assert "\n" not in sentence
    return sentences


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("mutations")


@settings(max_examples=300)
@given(mutated(), st.sampled_from(["chat", "alpaca"]), st.sampled_from([(), ("reasoning_content", "tool_call_id", "weight")]))
def test_a_mutated_record_is_read_or_refused(directory, record, template, ignored):
    (directory / "x.jsonl").write_text(json.dumps(record))
    read(directory / "x.jsonl", template, ignored)


@settings(max_examples=60)
@given(mutated())
def test_a_mutated_record_in_parquet_is_read_or_refused(directory, record):
    try:
        table = pyarrow.Table.from_pylist([record] if isinstance(record, dict) else record)
        pyarrow.parquet.write_table(table, directory / "x.parquet")
    except Exception:  # what Parquet cannot hold is no input
        return
    read(directory / "x.parquet")


def damaged(content: bytes, random: random.Random) -> bytes:
    for _ in range(random.randint(1, 4)):
        start = random.randrange(len(content) + 1)
        end = min(len(content), start + random.choice([0, 1, 3, 40]))
        inserted = random.choice(
            [b"", b"\0", b"\xff", b'"', b"{", b"]", b",", b"\n", b"\\ud83d", b"1" * 5000, content[:9], random.randbytes(5)]
        )
        content = content[:start] + inserted + content[end:]
    return content


@settings(max_examples=250)
@given(st.sampled_from(sorted(CONTENTS)), st.booleans(), st.booleans(), st.randoms(use_true_random=False))
def test_a_damaged_file_is_read_or_refused(directory, ending, compressed, before_compression, random):
    content = CONTENTS[ending]
    if compressed:
        content = gzip.compress(damaged(content, random) if before_compression else content)
    path = directory / (f"x.{ending}.gz" if compressed else f"x.{ending}")
    path.write_bytes(damaged(content, random))
    read(path)


@settings(max_examples=100)
@given(st.sampled_from(["train_0.bin", "train_0.idx", "train.jsonl"]), st.booleans(), st.randoms(use_true_random=False))
def test_damaged_token_files_are_read_or_refused(tmp_path_factory, name, absent, random):
    directory = tmp_path_factory.mktemp("tokens")
    write_split(directory, "train", [{"instruction": "Hi", "input": "", "output": "yes"}] * 3, TOKENIZER)
    if absent:
        (directory / name).unlink()
        if random.random() < 0.5:
            (directory / name).mkdir()
    else:
        (directory / name).write_bytes(damaged((directory / name).read_bytes(), random))
    read(directory / "train_0.bin")
    read(directory)
    shutil.rmtree(directory)


@settings(max_examples=100)
@given(
    st.text(st.sampled_from(string.ascii_letters + "./:@[]%~\0\ud83d é"), max_size=20),
    st.sampled_from(["", ".jsonl", ".csv.gz", ".bin", ".txt"]),
)
def test_any_text_as_the_name_of_a_source_is_read_or_refused(directory, name, ending):
    import datasets

    def fail(*_, **__):
        raise ConnectionError("no network")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(datasets, "load_dataset", fail)
        patched.chdir(directory)
        read(name + ending)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: "-".join(record))
def test_the_records_that_are_mutated_are_readable(directory, record):
    (directory / "x.jsonl").write_text(json.dumps(record))
    (sentence,) = read(directory / "x.jsonl", ignored=("reasoning_content", "tool_call_id"))
    assert ("no text in a column `text`" in sentence) == ("text" not in record)
