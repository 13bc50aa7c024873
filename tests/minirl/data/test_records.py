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
        {"prompt": "2+2?", "output": "4", "id": None},
        {"question": "2+2?", "answer": "4"},
        {"instruction": "2+2?", "input": "", "output": "4"},
        {"instruction": "2+2?", "context": "", "response": "4"},
        {"instruction": "2+2?", "input": None, "output": ["4"]},
        {"messages": TURNS[3:]},
        {"prompt": TURNS[3:4], "completion": TURNS[4:]},
        {"prompt": "2+2?", "completion": TURNS[4:]},
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]}, TURNS[4]]},
        {"instruction": "2+2?", "output": "4", "system": "", "history": []},
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
        ({"query": "a", "reply": "b"}, r"here has the columns query, reply, .*understood are messages.*; prompt with .*Dolly"),
        ({}, r"here has the columns \(none\)"),
        ({"prompt": None, "completion": "b"}, "here has nothing in the column prompt"),
        ({"prompt": 3, "completion": "b"}, "here has a number in the column prompt, where a text belongs"),
        ({"prompt": "a", "completion": {"text": "b"}}, "here has an object in the column completion"),
        ({"instruction": "a", "output": ["b", None]}, "here has null in the column output"),
        ({"prompt": " \n", "completion": "b"}, "here has an empty prompt"),
        ({"messages": []}, "here has an empty list as messages"),
        ({"messages": "Hi"}, "here has a text as messages"),
        ({"messages": ["Hi"]}, "here has a message without role and content: Hi"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "here has a list in the column content"),
        ({"messages": [{"role": "critic", "content": "x"}]}, "here has the role 'critic'"),
        ({"messages": [{"role": "tool", "content": "x"}, *TURNS[1:]]}, "begins with a tool turn"),
        ({"messages": [{"role": "user", "content": None}]}, "a message without role and content"),
        ({"messages": TURNS[:1]}, "need a user turn"),
        ({"messages": TURNS[1:] + TURNS[:1]}, "a system prompt can only come first"),
        ({"messages": TURNS[2:]}, "begins with an assistant turn"),
    ],
)
def test_an_unusable_record_is_named_with_its_reason(columns, message):
    with pytest.raises(InputError, match=message):
        parse_record(columns, "here")


UNUSED = [
    ({"prompt": "a", "completion": "b", "category": "c"}, "category", r"has the column category, .*data\.ignore_columns: \[category\]"),
    (
        {"messages": TURNS, "prompt": "a", "prompt_id": "b"},
        "prompt prompt_id",
        r"has the columns prompt, prompt_id, which are not used here",
    ),
    ({"instruction": "a", "prompt": "b", "output": "c"}, "prompt", "has the columns prompt and instruction, of which one can be read"),
    ({"prompt": "a", "completion": "b", "response": "c"}, "response", "has the columns completion and response, of which one can be read"),
    ({"messages": TURNS, "history": [["a", "b"]]}, "history", "has the column history"),
    ({"messages": [{**TURNS[1], "audio": "x"}]}, "audio", "has a message with audio, which is not used"),
    ({"conversations": [{"from": "human", "value": "a", "markdown": "b"}]}, "markdown", "has a message with markdown"),
]


@pytest.mark.parametrize(("columns", "names", "message"), UNUSED)
def test_a_field_that_is_not_used_is_refused_unless_it_may_be_ignored(columns, names, message):
    with pytest.raises(InputError, match=f"train line 3 {message}"):
        parse_record(columns, "train line 3")
    assert parse_record(columns, "train line 3", ignored=names.split()).messages


def test_the_system_column_and_the_history_become_turns():
    columns = {"instruction": "2+2?", "output": "4", "system": "Be brief.", "history": [["Hi", "Hello"]]}
    conversation = parse_record(columns, "here")
    assert conversation == parse_record({"messages": TURNS}, "here")
    with_messages = parse_record({"messages": TURNS[1:], "system_prompt": "Be brief."}, "here")
    assert with_messages == conversation
    with pytest.raises(InputError, match="here has the roles system, system, user"):
        parse_record({"messages": TURNS, "system": "Be rude."}, "here")
    for history in ("Hi", [["Hi"]], [["Hi", None]], {"a": "b"}):
        with pytest.raises(InputError, match="here has (a history that is no list of pairs|null in the column history)"):
            parse_record(columns | {"history": history}, "here")


def test_a_weight_of_0_is_kept_and_a_last_answer_of_weight_0_is_left_out():
    wrong = {"role": "assistant", "content": "WRONG", "weight": 0}
    conversation = parse_record({"messages": [TURNS[1], wrong, *TURNS[3:]]}, "here")
    assert [message.is_learnt for message in conversation.messages] == [False, False, False, True]
    conversation = parse_record({"messages": [TURNS[1], wrong]}, "here")
    assert conversation.messages == (Message("user", "Hi"),) and conversation.references == () and not conversation.has_response
    learnt = parse_record({"messages": [TURNS[1] | {"weight": 0}, TURNS[2] | {"weight": 1.0}]}, "here")
    assert learnt.messages == (Message("user", "Hi", weight=0.0), Message("assistant", "Hello"))


@pytest.mark.parametrize("weight", [0.5, -1, 2, "1", [1], float("nan"), float("inf")])
def test_other_weights_are_refused(weight):
    with pytest.raises(InputError, match=r"here has a message of the weight .*; it must be 1 \(learnt\) or 0 \(not learnt\)"):
        parse_record({"messages": [TURNS[1], TURNS[2] | {"weight": weight}]}, "here")


def test_a_user_turn_cannot_be_learnt():
    with pytest.raises(InputError, match="here has a user message of weight 1, and only the assistant's turns can be learnt"):
        parse_record({"messages": [TURNS[1] | {"weight": 1}, TURNS[2]]}, "here")


def test_answers_inside_a_trl_prompt_are_not_learnt():
    conversation = parse_record({"prompt": TURNS[:4], "completion": TURNS[4:]}, "here")
    assert [message.content for message in conversation.messages if message.is_learnt] == ["4"] and conversation.references == ("4",)
    with pytest.raises(InputError, match="here has a prompt that ends with an assistant turn"):
        parse_record({"prompt": TURNS}, "here")


WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def test_tools_thoughts_and_calls_reach_the_template():
    arguments = {"city": "Rome"}
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": json.dumps(arguments)}}
    turns = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "I ask."},
        {"role": "tool", "content": "sun", "tool_call_id": "1", "name": "weather"},
        {"role": "assistant", "content": "No."},
    ]
    conversation = parse_record({"messages": turns, "tools": json.dumps([WEATHER])}, "here")
    assert conversation.tools == (WEATHER,) == parse_record({"messages": turns, "tools": [WEATHER]}, "here").tools
    called = call | {"function": {"name": "weather", "arguments": arguments}}
    rendered = [message.as_dict() for message in conversation.messages]
    assert rendered == [turns[0], turns[1] | {"content": "", "tool_calls": [called]}, *turns[2:]]
    flat = parse_record({"messages": [turns[0], turns[1] | {"tool_calls": [{"name": "f", "arguments": "{}"}]}]}, "here")
    assert flat.messages[1].extra["tool_calls"] == [{"name": "f", "arguments": {}}] and flat.references == ()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"tools": "[{"}, "tools as text that is not valid JSON: .*property name"),
        ({"tools": "3"}, "tools that are no list of objects"),
        ({"tools": ["weather"]}, "tools that are no list of objects"),
        ({"tools": 3}, "tools that are no list of objects"),
        ({"messages": [TURNS[1], {"role": "assistant", "tool_calls": ["weather"]}]}, "a tool call without the name of a function"),
        (
            {"messages": [TURNS[1], {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "3"}]}]},
            "a tool call whose arguments are no JSON object",
        ),
        ({"messages": [TURNS[1] | {"name": 3}]}, "a number in the column name"),
        ({"teacher_id": ["a"]}, "a list in the column teacher_id"),
    ],
)
def test_unusable_tools_and_fields_are_named(columns, message):
    with pytest.raises(InputError, match=f"here has {message}"):
        parse_record({"messages": TURNS} | columns, "here")


def nested(levels: int):
    value = "x"
    for _ in range(levels):
        value = [value]
    return {"name": "f", "arguments": {"a": value}}


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": "cut \ud83d", "completion": "yes"},
        {"prompt": "a", "completion": "\udc00"},
        {"instruction": "a", "input": "\ud83d", "output": "b"},
        {"prompt": "a", "system": "\ud83d"},
        {"prompt": "a", "history": [["\ud83d", "b"]]},
        {"prompt": "a", "teacher_id": "\ud83d"},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "\ud83d"}]}]},
        {"messages": TURNS, "tools": [{"name": "\ud83d"}]},
        {"messages": TURNS, "tools": [{"\ud83d": "x"}]},
        {"messages": [TURNS[1], TURNS[2] | {"reasoning_content": "\ud83d"}]},
        {"messages": [TURNS[1], TURNS[2] | {"tool_calls": [{"name": "f", "arguments": '{"a": "\\ud83d"}'}]}]},
    ],
)
def test_half_a_character_is_named_with_its_line_and_column(columns):
    with pytest.raises(InputError, match=r"line 7 has half a character \(\\ud83d|\\udc00.*, a surrogate .* in the column \w") as refused:
        parse_record(columns, "line 7")
    assert str(refused.value).isascii(), "the message itself must be printable"


def test_values_that_are_nested_too_deeply_are_refused():
    parse_record({"messages": TURNS, "tools": [nested(20)]}, "here")
    for levels in (80, 900):
        with pytest.raises(InputError, match="here has a value of more than 64 levels in the column tools|nested"):
            parse_record({"messages": TURNS, "tools": [nested(levels)]}, "here")


def test_names_that_cannot_be_printed_are_escaped_and_long_ones_cut():
    with pytest.raises(InputError, match=r"has the columns \\ud83d, x{40}\.\.\.") as refused:
        parse_record({"prompt": "a", "\ud83d": "b", "x" * 5000: "c"}, "here")
    assert len(str(refused.value)) < 400


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


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_data_set_is_refused(tmp_path, text):
    (tmp_path / "data.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"data\.jsonl is empty"):
        read_conversations(str(tmp_path / "data.jsonl"))


@pytest.mark.parametrize("source", ["data.xlsx", "dolly", "data/dolly.zst", "a/b/c", "a/b:c/d/e", "nul\0.txt"])
def test_a_source_of_no_known_form_is_refused_without_asking_the_hub(source):
    with pytest.raises(InputError, match="cannot tell what the data source"):
        read_rows(source)


def test_an_unreachable_hub_is_one_sentence(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="nobody/nothing:test is no file, .*HF_HUB_OFFLINE forbids to download it; unset it"):
        list(read_rows("nobody/nothing:test"))


def test_a_column_without_which_there_is_no_record_cannot_be_ignored():
    for field in ("role", "content"):
        with pytest.raises(InputError, match=f"data.ignore_columns names {field}, without which here has no messages"):
            parse_record({"messages": TURNS}, "here", (field,))


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"tools": '[{"name": "f", "name": "g"}]'}, "tools as text that is not valid JSON: the name 'name' occurs twice"),
        ({"tools": "[" * 100_000}, "tools as text that is not valid JSON: maximum recursion"),
        ({"tools": 0}, "tools that are no list of objects"),
        ({"tools": False}, "tools that are no list of objects"),
        ({"tools": {}}, "tools that are no list of objects"),
    ],
)
def test_nothing_in_the_column_tools_vanishes(columns, sentence):
    with pytest.raises(InputError, match=sentence):
        parse_record({"messages": TURNS} | columns, "here")


def test_a_name_given_twice_in_the_arguments_of_a_call_is_refused():
    call = {"function": {"name": "f", "arguments": '{"x": 1, "x": 2}'}}
    with pytest.raises(InputError, match="the arguments of a tool call as text that is not valid JSON: the name 'x' occurs twice"):
        parse_record({"messages": [TURNS[1], {"role": "assistant", "tool_calls": [call]}]}, "here")


def test_an_unknown_embedded_set_is_refused():
    with pytest.raises(InputError, match="embedded:chatterbox is not known"):
        read_conversations("embedded:chatterbox")
