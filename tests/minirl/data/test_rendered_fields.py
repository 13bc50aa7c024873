"""Fields that a chat template leaves out: tools, thoughts and names that would vanish are refused."""

import json

import pytest

from minirl.config.data import DataConfig
from minirl.data.conversation import Conversation, Message
from minirl.data.examples import load_examples
from minirl.data.rendered_fields import RenderedFields
from minirl.data.segment import Segment
from minirl.data.templates import end_tokens
from minirl.errors import InputError
from tests.minirl.data.chatml import TEMPLATE, chatml_tokenizer

# Renders tools, thoughts of the last turn only (as reasoning models do), tool calls, and names of users.
RICH = (
    "{% for tool in tools or [] %}({{ tool.name }}){% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ m.name if m.name and m.role == 'user' }}\n"
    "{{ m.reasoning_content if m.reasoning_content and loop.last }}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}[{{ call.name }}]{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "yes"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"name": "weather", "arguments": {}}]}
FIELDS = {
    "tools": {"messages": [USER, ANSWER], "tools": [{"name": "weather"}]},
    "reasoning_content of the assistant": {"messages": [USER, ANSWER | {"reasoning_content": "so"}]},
    "tool_calls of the assistant": {"messages": [USER, CALL]},
    "name of the user": {"messages": [USER | {"name": "Ann"}, ANSWER]},
}


@pytest.fixture
def examples(tmp_path):
    def read(row: dict, template: str, **settings):
        (tmp_path / "x.jsonl").write_text(json.dumps(row))
        tokenizer = chatml_tokenizer(template=template)
        config = DataConfig(train="x.jsonl", **settings)
        (example,) = load_examples(str(tmp_path / "x.jsonl"), config, tokenizer, end_tokens(tokenizer))
        return example, tokenizer

    return read


@pytest.mark.parametrize(("name", "row"), FIELDS.items(), ids=FIELDS)
def test_a_field_that_the_template_leaves_out_is_refused(examples, name, row):
    with pytest.raises(
        InputError, match=rf"line 1 has {name}, which the chat template does not render; .*ignore_columns: \[{name.split()[0]}\]"
    ):
        examples(row, TEMPLATE)
    examples(row, RICH)
    if name != "tool_calls of the assistant":
        examples(row, TEMPLATE, ignore_columns=[name.split()[0]])


def test_each_role_is_checked_by_itself(examples):
    turns = [USER | {"name": "Ann"}, CALL, {"role": "tool", "content": "sun", "name": "weather"}, ANSWER]
    with pytest.raises(InputError, match="line 1 has name of the tool, which the chat template does not render"):
        examples({"messages": turns}, RICH)


def test_thoughts_that_the_template_leaves_out_of_earlier_turns_by_design_are_accepted():
    def thinks_last(conversation: Conversation) -> list[Segment]:
        last = conversation.messages[-1]
        return [Segment.of([ord(c) for m in conversation.messages for c in m.content + (m.text if m is last else "")])]

    def never_thinks(conversation: Conversation) -> list[Segment]:
        return [Segment.of([ord(c) for m in conversation.messages for c in m.content])]

    turns = (Message("user", "Hi"), Message("assistant", "yes", {"reasoning_content": "so"}, 0.0), Message("user", "and?"))
    conversation = Conversation(turns)
    RenderedFields(thinks_last).check(conversation, thinks_last(conversation))
    with pytest.raises(InputError, match="a record has reasoning_content of the assistant"):
        RenderedFields(never_thinks).check(conversation, never_thinks(conversation))


def test_an_answer_that_only_calls_tools_has_its_rendering_as_reference(examples):
    example, tokenizer = examples({"messages": [USER, CALL]}, RICH)
    assert example.prompt.references == ("[weather]",) and tokenizer.decode(example.prompt.gold) == "[weather]<|im_end|>"
