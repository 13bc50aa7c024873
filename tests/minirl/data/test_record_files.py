"""Data files: every format and compression gives the same rows, and every damaged file is one sentence that says what it was taken for."""

import csv
import errno
import gzip
import io
import json
import os

import httpx
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import errors

from minirl.data.corpus import read_documents
from minirl.data.hub_rows import HubSource, parse_hub_source
from minirl.data.record_files import FORMATS
from minirl.data.records import read_conversations, read_rows
from minirl.errors import InputError
from tests.deadlines import deadline

ROWS = [{"prompt": "a", "completion": 'ä "b",\n'}, {"prompt": "\U0001f600", "completion": "c"}, {"prompt": "d", "completion": None}]


def separated(rows, separator) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet(rows) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


CONTENTS = {
    "jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
    "ndjson": "\ufeff\n".encode() + b"\n\n".join(json.dumps(row, ensure_ascii=False).encode() for row in ROWS),
    "json": json.dumps(ROWS, indent=2).encode(),
    "csv": "\ufeff".encode() + separated(ROWS, ","),
    "tsv": separated(ROWS, "\t"),
    "parquet": parquet(ROWS),
}


def test_every_format_is_tested():
    assert {f".{ending}" for ending in CONTENTS} == set(FORMATS)


@pytest.mark.parametrize("ending", CONTENTS)
@pytest.mark.parametrize("name", ["data.{}", "DATA.{}", "data.{}.gz", "data.{}.GZ"])
def test_every_format_gives_the_same_rows(tmp_path, ending, name):
    path = tmp_path / name.format(ending.upper() if name.isupper() or name.startswith("DATA") else ending)
    path.write_bytes(gzip.compress(CONTENTS[ending]) if name.lower().endswith(".gz") else CONTENTS[ending])
    rows = [columns for _, columns in read_rows(str(path))]
    assert [{name: value for name, value in columns.items() if value is not None} for columns in rows] == [*ROWS[:2], {"prompt": "d"}]
    assert [conversation.has_response for conversation in read_conversations(str(path))] == [True, True, False]


def test_rows_are_named_as_a_person_finds_them(tmp_path):
    for ending, origins in {
        "jsonl": ["line 1", "line 2", "line 3"],
        "ndjson": ["line 2", "line 4", "line 6"],
        "json": ["record 1", "record 2", "record 3"],
        "csv": ["line 3", "line 4", "line 5"],  # the last line of a row; the first row has a line break
        "parquet": ["row 1", "row 2", "row 3"],
    }.items():
        path = tmp_path / f"data.{ending}"
        path.write_bytes(CONTENTS[ending])
        assert [origin for origin, _ in read_rows(str(path))] == [f"{path} {origin}" for origin in origins]


def test_a_json_file_that_is_no_array_is_json_lines(tmp_path):
    (tmp_path / "data.json").write_bytes(CONTENTS["jsonl"])
    assert len(read_conversations(str(tmp_path / "data.json"))) == 3


def test_nulls_that_parquet_adds_are_no_fields(tmp_path):
    messages = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "name": "Bob"}]]
    tools = [[{"name": "f", "a": 1}], [{"name": "g", "b": 2}]]
    path = tmp_path / "data.parquet"
    path.write_bytes(parquet([{"messages": messages[0], "tools": given} for given in tools]))
    conversations = read_conversations(str(path))
    assert [list(conversation.tools) for conversation in conversations] == tools
    assert [message.extra for message in conversations[0].messages] == [{}, {"name": "Bob"}]


def test_a_long_cell_is_read(tmp_path):
    (tmp_path / "data.csv").write_text(f'prompt,completion\n"{"x" * 200_000}",b\n')
    assert len(read_conversations(str(tmp_path / "data.csv"))[0].prompt_text) > 200_000


LONG_NUMBER = b'{"prompt": "a", "n": ' + b"1" * 5000 + b"}"
AS_LINES = r"\(it was read as JSON lines, because its name ends in \.jsonl"
DAMAGED = {
    "a malformed line": ("x.jsonl", b'{"prompt": "a"}\n{"prompt": "b",}', r"line 2 is not valid JSON: .*property name.*" + AS_LINES),
    "a line that is no object": ("x.jsonl", b"[1, 2]", r"line 1 holds a list; .*" + AS_LINES + ".*so let its name end in .json"),
    "no UTF-8": ("x.jsonl", b'{"prompt": "a"}\n{"prompt": "\xff"}\n', "line 2 is not valid JSON: .*utf-8"),
    "a long number": ("x.jsonl", LONG_NUMBER, "line 1 is not valid JSON: Exceeds the limit"),
    "a long number in an array": ("x.json", b"[" + LONG_NUMBER + b"]", "as a whole is not valid JSON: Exceeds the limit"),
    "deep nesting": ("x.jsonl", b"[" * 100_000, "line 1 is not valid JSON: maximum recursion depth"),
    "a name given twice": ("x.jsonl", b'{"prompt": "a", "prompt": "b"}', "line 1 is not valid JSON: the name 'prompt' occurs twice"),
    "an array cut off": ("x.json", b'[{"prompt": "a"}', r"as a whole is not valid JSON: .*\(it was read as JSON, because"),
    "an array of texts": ("x.json", b'[{"prompt": "a"}, "b"]', "record 2 holds a text"),
    "records inside an object": ("x.json", b'{"data": [{"prompt": "a"}]}', "holds one object with data instead of an array of records"),
    "columns inside an object": ("x.json", b'{"prompt": ["a"], "completion": ["b"]}', "holds one object with prompt, completion instead"),
    "records by number": ("x.json", b'{"0": {"prompt": "a"}, "1": {"prompt": "b"}}', "holds one object with 0, 1 instead of an array"),
    "a record over several lines": ("x.json", b'{\n"prompt": "a"\n}', "holds one object with prompt instead of an array of records"),
    "zeros": ("x.jsonl", bytes(500), "its content is zeros, so the disk was full or the copy failed"),
    "zeros in CSV": ("x.csv", bytes(500), "line 1 has NUL characters, so it is no text"),
    "gzip in gzip": ("x.jsonl.gz", gzip.compress(gzip.compress(b"{}")), "its content is compressed with gzip"),
    "Parquet in gzip": ("x.jsonl.gz", gzip.compress(CONTENTS["parquet"]), "its content is a Parquet file"),
    "a git-lfs pointer": (
        "x.jsonl",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:01\n",
        "a git-lfs pointer, so fetch the file",
    ),
    "a web page": ("x.json", b"<!DOCTYPE html><html>", "its content is a web page, so the download failed"),
    "UTF-16": ("x.csv", "prompt,completion\na,b\n".encode("utf-16"), r"is not UTF-8 text: .*its content is UTF-16 text"),
    "gzip without its ending": ("x.jsonl", gzip.compress(b"{}"), "its content is compressed with gzip, so let its name end in .gz"),
    "no gzip": (
        "x.jsonl.gz",
        b'{"prompt": "a"}',
        r"is not readable: Not a gzipped file .*JSON lines in gzip, because its name ends in \.jsonl\.gz",
    ),
    "half a gzip": ("x.jsonl.gz", gzip.compress(b'{"prompt": "a"}\n' * 999)[:-20], "is not readable: Compressed file ended"),
    "broken gzip": ("x.csv.gz", gzip.compress(b"abcdefgh" * 99)[:14] + b"\xff" * 30, "is not (readable|UTF-8 text): "),
    "no Parquet": ("x.parquet", b"not parquet", r"is not readable: .*it was read as Parquet, because its name ends in \.parquet"),
    "half a Parquet": ("x.parquet", CONTENTS["parquet"][:-30], "is not readable: "),
    "an empty Parquet": ("x.parquet", b"", "is not readable: "),
    "a spreadsheet": ("x.csv", b"PK\x03\x04\x14\0\xff\xff", "a zip archive or a spreadsheet, so unpack it or export it as CSV"),
    "too many cells": ("x.csv", b"prompt,completion\na,b\na,b,c\n", "line 3 has 3 cells, and the first line names 2 columns"),
    "an open quote": ("x.csv", b'prompt,completion\na,"b\n', "is not valid CSV: unexpected end of data"),
    "a column twice": ("x.csv", b"prompt,prompt\na,b\n", "line 1 names a column twice: prompt, prompt"),
    "another separator": (
        "x.csv",
        b"prompt;completion\na;b\n",
        r"line 1 names one column, prompt;completion, which looks as if semicolons separated several; .*read as CSV, because its name",
    ),
    "tabs": ("x.csv", b"prompt\tcompletion\na\tb\n", r"looks as if tabs separated several; let its name end in \.tsv"),
    "an empty prompt": ("x.csv", b"prompt,completion\n,b\n", "line 2 has nothing in the column prompt"),
    "only a head": ("x.csv", b"prompt,completion\n", "is empty"),
}


@pytest.mark.parametrize(("name", "content", "sentence"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_one_sentence_that_says_what_it_was_taken_for(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} .*{sentence}") as refused:
        read_conversations(str(tmp_path / name))
    assert str(refused.value).isprintable() and len(str(refused.value)) < 1000


def test_a_record_alone_in_a_json_file_is_read(tmp_path):
    for record in ({"prompt": "a"}, {"messages": [{"role": "user", "content": "a"}]}, {"prompt": [{"role": "user", "content": "a"}]}):
        (tmp_path / "x.json").write_text(json.dumps(record))
        assert read_conversations(str(tmp_path / "x.json"))[0].messages[0].content == "a"


def test_blank_lines_above_the_names_of_columns_are_skipped(tmp_path):
    (tmp_path / "x.csv").write_text("\n\nprompt,completion\na,b\n")
    assert read_conversations(str(tmp_path / "x.csv"))[0].references == ("b",)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:01\n", "git-lfs pointer, so fetch the file itself"),
        (bytes(500), "its content is zeros"),
        (b"<!DOCTYPE html><html>", "its content is a web page"),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_text_that_nobody_wants_to_learn_is_refused(tmp_path, content, sentence, compressed):
    path = tmp_path / ("x.txt.gz" if compressed else "x.txt")
    path.write_bytes(gzip.compress(content) if compressed else content)
    with pytest.raises(InputError, match=f"is no plain text .*{sentence}"):
        list(read_documents(str(path)))


def test_a_corpus_without_its_column_says_what_the_file_was_taken_for(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"content": "a"}')
    with pytest.raises(InputError, match=r"no text in a column `text`.*columns are content \(it was read as JSON lines, because"):
        list(read_documents(str(tmp_path / "x.jsonl")))


@pytest.mark.timeout(deadline(2))
@pytest.mark.parametrize("name", ["x.jsonl", "x.csv.gz", "x.txt"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match="it is a pipe or a device, so write its content to a file"):
        list(read_documents(str(tmp_path / name)))


def test_a_path_that_the_system_refuses_is_told_in_its_words(tmp_path):
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for source, reason in {str(tmp_path / "circle"): "Too many levels of symbolic links", "x" * 5000: "File name too long"}.items():
        with pytest.raises(InputError, match=f"cannot read the data file .*: {reason}"):
            read_rows(source)


def test_a_parquet_file_that_names_a_column_twice_is_refused(tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["prompt", "prompt"])
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(InputError, match="names a column twice: prompt, prompt"):
        read_conversations(str(tmp_path / "x.parquet"))


@pytest.mark.parametrize("name", ["missing.jsonl", "missing.parquet", "missing.csv.gz", "x" * 300 + ".jsonl", "missing.txt"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(InputError, match="cannot read the data file .*: (No such file|File name too long)"):
        list(read_documents(str(tmp_path / name)))


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.parquet", "x.txt", "x.jsonl.gz"])
def test_a_directory_with_the_name_of_a_file_is_named(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match="cannot read the data file .*: Is a directory"):
        list(read_documents(str(tmp_path / name)))


def test_a_path_that_no_file_can_have_is_one_sentence():
    with pytest.raises(InputError, match="is not readable: embedded null byte"):
        read_conversations("nul\0.jsonl")


# --- the hub ---


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("openai/gsm8k", HubSource("openai/gsm8k", None, "train", None)),
        ("openai/gsm8k:test", HubSource("openai/gsm8k", None, "test", None)),
        ("openai/gsm8k:train[:10%]", HubSource("openai/gsm8k", None, "train[:10%]", None)),
        ("openai/gsm8k:main/train[10:20]+test", HubSource("openai/gsm8k", "main", "train[10:20]+test", None)),
        ("wikimedia/wikipedia:20231101.en/train", HubSource("wikimedia/wikipedia", "20231101.en", "train", None)),
        ("a/b@refs/convert/parquet:c-d_1/test", HubSource("a/b", "c-d_1", "test", "refs/convert/parquet")),
        ("a/b@v1.0", HubSource("a/b", None, "train", "v1.0")),
        ("a/b/c", None), ("a", None), ("a/b:", None), ("a/b@", None), ("a/b:c/d/e", None), ("/a/b", None),
    ],
)  # fmt: skip
def test_the_name_of_a_hub_data_set_has_its_parts(source, expected):
    assert parse_hub_source(source) == expected


def test_the_parts_reach_the_library_and_its_whole_reason_the_user(monkeypatch):
    import datasets

    calls = []

    def load(*arguments, **options):
        calls.append((arguments, options))
        return [{"prompt": "a", "completion": None, "messages": [{"role": "user", "name": None}]}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = [columns for _, columns in read_rows("a/b@v1:c/test", streaming=True)]
    assert rows == [{"prompt": "a", "completion": None, "messages": [{"role": "user"}]}]
    assert calls == [(("a/b", "c"), {"split": "test", "revision": "v1", "streaming": True})]

    def fail(*_, **__):
        raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['main', 'socratic']")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(InputError, match=r"^a/b is no file, .*Config name is missing. Please pick one .*'socratic'.*form owner/name"):
        read_conversations("a/b")


GATED = errors.GatedRepoError(
    "Access to dataset a/b is restricted.", response=httpx.Response(403, request=httpx.Request("GET", "https://h"))
)


@pytest.mark.parametrize(
    ("cause", "advice"),
    [
        (GATED, "the data set is gated (Access to dataset a/b is restricted); accept its licence"),
        (OSError(errno.ENOSPC, "No space left on device"), "free space, or set HF_HOME"),
        (httpx.ConnectError("certificate verify failed"), "set SSL_CERT_FILE"),
        (ValueError("Bad split: dev. Available splits: ['train']"), "['train']; check its name, configuration and split"),
    ],
)
def test_the_advice_about_the_hub_fits_the_cause(monkeypatch, cause, advice):
    """`datasets` raises the cause as it is, or an error of its own in its place."""
    import datasets

    def fail(*_, **__):
        raise cause

    def hide(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' cannot be accessed.")

    monkeypatch.setattr("huggingface_hub.HfApi.auth_check", fail)
    for failing in (fail, hide):
        monkeypatch.setattr(datasets, "load_dataset", failing)
        with pytest.raises(InputError, match="^a/b is no file, and the Hugging Face hub does not provide it: ") as refused:
            read_conversations("a/b")
        assert advice in str(refused.value)
