"""Records: every known form, every source, and the sentence for each unusable record or source."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from minirl.data.conversation import Message
from minirl.data.records import parse_record, read_conversations, read_rows
from minirl.errors import InputError

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
]


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": "2+2?", "completion": "4"},
        {"prompt": "2+2?", "response": "4"},
        {"prompt": "2+2?", "output": "4", "id": 17},
        {"instruction": "2+2?", "input": "", "output": "4"},
        {"instruction": "2+2?", "context": "", "response": "4", "category": "sums"},
        {"instruction": "2+2?", "input": None, "output": ["4"]},
        {"messages": TURNS[3:]},
    ],
)
def test_every_known_form_gives_the_same_conversation(columns):
    conversation = parse_record(columns, "here")
    assert conversation.messages == (Message("user", "2+2?"), Message("assistant", "4"))
    assert conversation.references == ("4",) and conversation.context == ""
    assert conversation.prompt_text == "2+2?\n"


@pytest.mark.parametrize("columns", [{"input": "Paris", "output": "yes"}, {"context": "Paris", "response": "yes"}])
def test_the_input_of_alpaca_and_the_context_of_dolly_stay_apart_from_the_instruction(columns):
    conversation = parse_record({"instruction": "A city?", **columns}, "here")
    assert conversation.messages[0] == Message("user", "A city?") and conversation.context == "Paris"
    assert "Paris" in conversation.prompt_text


def test_messages_keep_their_turns_and_the_last_answer_is_the_reference():
    conversation = parse_record({"messages": TURNS}, "here")
    assert [message.role for message in conversation.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert conversation.references == ("4",)
    assert conversation.prompt_text == "Be brief.\nHi\nHello\n2+2?\n"


def test_several_references_are_kept_and_the_first_is_the_gold_response():
    conversation = parse_record({"instruction": "Greet", "output": ["Hi", "Hello"]}, "here")
    assert conversation.references == ("Hi", "Hello") and conversation.messages[-1] == Message("assistant", "Hi")


@pytest.mark.parametrize("columns", [{"prompt": "Hi"}, {"prompt": "Hi", "completion": None}, {"messages": TURNS[:2]}])
def test_a_prompt_alone_is_a_record_without_response(columns):
    conversation = parse_record(columns, "here")
    assert not conversation.has_response and conversation.references == ()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"question": "a", "answer": "b"}, r"here has the columns question, answer, .*understood are messages; prompt with .*Dolly"),
        ({}, r"here has the columns \(none\)"),
        ({"prompt": 3, "completion": "b"}, "here has a number in the column prompt, where a text belongs"),
        ({"prompt": "a", "completion": {"text": "b"}}, "here has an object in the column completion"),
        ({"instruction": "a", "output": ["b", None]}, "here has null in the column output"),
        ({"prompt": " \n", "completion": "b"}, "here has an empty prompt"),
        ({"messages": []}, "here has a list as messages"),
        ({"messages": "Hi"}, "here has a text as messages"),
        ({"messages": ["Hi"]}, "here has a message without role and content: Hi"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "here has a list in the column content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "here has the role 'tool'"),
        ({"messages": TURNS[:1]}, "need a user turn"),
        ({"messages": TURNS[1:] + TURNS[:1]}, "a system prompt can only come first"),
        ({"messages": TURNS[2:]}, "begins with an assistant turn"),
    ],
)
def test_an_unusable_record_is_named_with_its_reason(columns, message):
    with pytest.raises(InputError, match=message):
        parse_record(columns, "here")


def test_jsonl_keeps_order_skips_blank_lines_and_counts_them_for_the_line_number(tmp_path):
    path = write(tmp_path / "data.jsonl", {"prompt": "a", "completion": "ä"}, "", {"prompt": "b"}, "")
    conversations = read_conversations(path)
    assert [c.messages[0].content for c in conversations] == ["a", "b"]
    assert [c.origin for c in conversations] == [f"{path} line 1", f"{path} line 3"]
    assert read_conversations(path, limit=1) == conversations[:1]


def test_a_byte_order_mark_is_not_part_of_the_first_record(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\n')
    assert read_conversations(str(path))[0].messages == (Message("user", "a"),)


def test_parquet_reads_as_the_same_records_as_jsonl(tmp_path):
    rows = [{"messages": TURNS}, {"messages": TURNS[3:]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data.parquet")
    from_parquet = read_conversations(str(tmp_path / "data.parquet"))
    from_jsonl = read_conversations(write(tmp_path / "data.jsonl", *rows))
    assert [c.messages for c in from_parquet] == [c.messages for c in from_jsonl]
    assert from_parquet[1].origin.endswith("data.parquet row 2")


def test_a_malformed_line_is_named_by_file_and_number(tmp_path):
    path = write(tmp_path / "data.jsonl", {"prompt": "a"}, '{"prompt": "b",}')
    with pytest.raises(InputError, match=r"data\.jsonl line 2 is not valid JSON: .*property name"):
        read_conversations(path)


def test_a_line_that_is_no_object_is_named(tmp_path):
    with pytest.raises(InputError, match=r"data\.jsonl line 1 holds a list"):
        read_conversations(write(tmp_path / "data.jsonl", "[1, 2]"))


def test_bytes_that_are_no_text_are_named(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff"}\n')
    with pytest.raises(InputError, match=r"data\.jsonl line 2 is not valid JSON: .*utf-8"):
        read_conversations(str(path))


@pytest.mark.parametrize("name", ["missing.jsonl", "missing.parquet"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(InputError, match=f"cannot read the data file .*{name}: No such file"):
        read_conversations(str(tmp_path / name))


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    (tmp_path / "data.parquet").write_text("not parquet")
    with pytest.raises(InputError, match=r"data\.parquet is not a readable Parquet file"):
        read_conversations(str(tmp_path / "data.parquet"))


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_data_set_is_refused(tmp_path, text):
    (tmp_path / "data.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"data\.jsonl is empty"):
        read_conversations(str(tmp_path / "data.jsonl"))


@pytest.mark.parametrize("source", ["data.csv", "dolly", "data/dolly.json", "a/b/c"])
def test_a_source_of_no_known_form_is_refused_without_asking_the_hub(source):
    with pytest.raises(InputError, match="cannot tell what the data source"):
        read_rows(source)


def test_an_unreachable_hub_is_one_sentence(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"cannot load the data set nobody/nothing:test from the Hugging Face hub \(.*\); check its name"):
        list(read_rows("nobody/nothing:test"))


def test_an_unknown_embedded_set_is_refused():
    with pytest.raises(InputError, match="embedded:chatterbox is not known"):
        read_conversations("embedded:chatterbox")
