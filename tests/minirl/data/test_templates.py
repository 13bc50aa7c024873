"""Chat templates of model families: prompts, what is learnt, turns that are rewritten, thoughts, marks, arguments and errors."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minirl.config.data import DataConfig
from minirl.config.reader import read_config
from minirl.data.chat_template import ChatTemplate
from minirl.data.conversation import Conversation, Message
from minirl.data.examples import _Encoder, load_data, load_examples
from minirl.data.templates import end_tokens, make_template
from minirl.errors import InputError
from tests.minirl.data.chat_templates import GEMMA3, LLAMA3, MISTRAL, PHI4, QWEN3, R1, STYLES, Style

USER, YES = {"role": "user", "content": "is it blue"}, {"role": "assistant", "content": "yes"}
THOUGHT = YES | {"content": "<think>\nit is\n</think>\n\nyes"}
FIELD = YES | {"reasoning_content": "it is"}
AGAIN, NO = USER | {"content": "and green"}, YES | {"content": "no"}


class Encoded:
    """Records as examples. pairs: (prompt, learnt text) of each; counts: as in the report of `load_data`."""

    def __init__(self, style: Style, rows: tuple[list[dict], ...], jinja: str | None = None, **settings):
        config, self.tokenizer = DataConfig(train="x.jsonl", **settings), style.tokenizer(jinja)
        encoder = _Encoder(config, self.tokenizer, end_tokens(self.tokenizer, arguments=config.template_arguments), ())
        records = [Conversation(tuple(map(as_message, row)), origin=f"x.jsonl line {n}") for n, row in enumerate(rows, start=1)]
        turns = [turn for record in records for turn in encoder.turns(record)]
        self.examples = [encoder.example(i, turn) for i, turn in enumerate(turns)]
        self.pairs = [(self._text(e.prompt.tokens), self._text(e.sequence.tokens[e.sequence.is_target])) for e in self.examples]
        self.counts = encoder.counts

    def _text(self, tokens) -> str:
        return self.tokenizer.decode(tokens)


def as_message(fields: dict) -> Message:
    extra = {name: value for name, value in fields.items() if name not in ("role", "content", "weight")}
    return Message(fields["role"], fields["content"], extra, fields.get("weight", 1.0))


def encode(style: Style, *rows, **settings) -> Encoded:
    return Encoded(style, rows, **settings)


@pytest.fixture
def load(tmp_path):
    """Loads rows of messages from a file, with held-out files of one prompt each unless `settings` say otherwise."""

    def load(style: Style, *rows: list[dict], **settings):
        for name, content in (("train", rows), ("held_out", [[USER | {"content": "held out"}]])):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in content))
        held_out, tokenizer = str(tmp_path / "held_out.jsonl"), style.tokenizer()
        config = DataConfig(**{"train": str(tmp_path / "train.jsonl"), "validation": held_out, "test": held_out, **settings})
        return load_data(config, tokenizer, end_tokens(tokenizer))

    return load


# --- one turn ---

ONE_TURN = {
    "qwen3": ("<|im_start|>user\nis it blue<|im_end|>\n<|im_start|>assistant\n", "<think>\n\n</think>\n\nyes<|im_end|>"),
    "r1": ("<|begin|><|User|>is it blue<|Assistant|><think>\n", "\n</think>\n\nyes<|end_of_sentence|>"),
    "llama3": (
        "<|begin_of_text|><|start|>system<|stop|>\n\nToday is 26 Jul 2024<|eot_id|>"
        "<|start|>user<|stop|>\n\nis it blue<|eot_id|><|start|>assistant<|stop|>\n\n",
        "yes<|eot_id|>",
    ),
    "gemma3": ("<bos><start_of_turn>user\nis it blue<end_of_turn>\n<start_of_turn>model\n", "yes<end_of_turn>"),
    "phi4": ("<|im_start|>user<|im_sep|>is it blue<|im_end|><|im_start|>assistant<|im_sep|>", "yes<|im_end|>"),
    "mistral": ("<s>[INST]is it blue[/INST]", " yes</s>"),
}


@pytest.mark.parametrize("name", STYLES)
def test_one_turn_of_every_family(name):
    encoded = encode(STYLES[name], [USER, YES])
    assert encoded.pairs == [ONE_TURN[name]]
    assert encoded.counts["thoughts_closed"] == (name == "r1") and encoded.counts["turns_apart"] == 0


# --- several turns ---


@pytest.mark.parametrize("style", [LLAMA3, GEMMA3, PHI4, MISTRAL])
def test_turns_that_the_template_leaves_alone_are_one_sequence(style):
    encoded = encode(style, [USER, YES, AGAIN, NO])
    ((prompt, learnt),) = encoded.pairs
    one, end = encode(style, [USER, YES]).pairs[0], learnt.rpartition("no")[2]
    assert prompt.startswith("".join(one)) and "and green" in prompt and learnt == one[1] + one[1].replace("yes", "no") and end
    assert encoded.counts["turns_apart"] == 0


@pytest.mark.parametrize(
    ("style", "rows", "system"), [(QWEN3, [USER, YES, AGAIN, NO], None), (R1, [USER, THOUGHT, AGAIN, NO], None),
                                  (MISTRAL, [USER, YES, AGAIN, NO], "Be brief.")]
)  # fmt: skip
def test_turns_that_the_template_rewrites_become_one_example_each(style, rows, system):
    encoded = encode(style, rows, system_prompt=system)
    first, second = encoded.pairs
    assert first == encode(style, rows[:2], system_prompt=system).pairs[0]
    messages = [{"role": "system", "content": system}] * (system is not None) + rows
    assert second[0] == encoded.tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    assert "no" in second[1] and "yes" not in second[1] and "and green" in second[0]
    assert encoded.counts["turns_apart"] == 1


def test_examples_of_turns_are_counted_and_have_references_and_indices_of_their_own(load):
    data = load(QWEN3, [USER, YES, AGAIN, NO], [USER | {"content": "why"}, YES])
    assert data.report["records"] == 4 and data.report["train"] == 3 and data.report["turns_apart"] == 1
    assert [example.prompt.references for example in data.train] == [("yes",), ("no",), ("yes",)]
    indices = [example.prompt.index for split in (data.train, data.validation, data.test) for example in split]
    assert len(set(indices)) == len(indices) == 5


def test_the_text_after_the_end_token_belongs_to_no_turn():
    """Phi's template closes a conversation with one more token, which the next turn must not follow."""
    ((prompt, learnt),) = encode(PHI4, [USER, YES, AGAIN, NO]).pairs
    assert "<|endoftext|>" not in prompt + learnt and learnt == "yes<|im_end|>no<|im_end|>"


def test_a_turn_of_weight_0_is_in_the_prompt_and_not_learnt():
    encoded = encode(QWEN3, [USER, YES | {"weight": 0}, AGAIN, NO])
    ((prompt, learnt),) = encoded.pairs
    assert "assistant\nyes<|im_end|>" in prompt and learnt == "<think>\n\n</think>\n\nno<|im_end|>" and encoded.counts["turns_apart"] == 0


@pytest.mark.parametrize("last", [[AGAIN], [AGAIN, NO | {"weight": 0}]])
def test_a_learnt_turn_before_one_that_is_not_learnt_is_not_lost(last):
    encoded = encode(QWEN3, [USER, YES, *last])
    (first, learnt), (second, nothing) = encoded.pairs
    assert learnt == "<think>\n\n</think>\n\nyes<|im_end|>" and nothing == ""
    assert "and green" not in first and second.endswith("and green<|im_end|>\n<|im_start|>assistant\n")


def test_no_prompt_is_in_two_splits_where_turns_come_apart(load):
    rows = [[USER | {"content": f"{i % 7}"}, YES, USER | {"content": f"{i % 11}"}, NO] for i in range(77)]
    settings = {"validation": None, "test": None, "validation_share": 0.2, "test_share": 0.2}
    data = load(QWEN3, *rows, **settings)
    splits = [{tuple(e.prompt.tokens) for e in split} for split in (data.train, data.validation, data.test)]
    assert sum(map(len, splits)) == len(set().union(*splits)) == 7 + 77 and data.report["turns_apart"] == 77


@pytest.mark.parametrize("style", [LLAMA3, QWEN3])
@pytest.mark.parametrize("last", [[NO], []])
def test_a_conversation_is_rendered_once(load, monkeypatch, style, last):
    """Where its turns are one sequence, where they come apart, and where the last one has no answer."""
    renderings, render = [], ChatTemplate.render

    def recording(self, messages, conversation, start_answer):
        renderings.append((tuple(messages), start_answer))
        return render(self, messages, conversation, start_answer)

    monkeypatch.setattr(ChatTemplate, "render", recording)
    load(style, [USER, YES, AGAIN, *last], system_prompt="Be brief.")
    of_first_turn = [(messages, start) for messages, start in renderings if messages[1].content == USER["content"]]
    assert len(of_first_turn) == len({(tuple(m.content for m in messages), start) for messages, start in of_first_turn}) == 3 + bool(last)


def test_the_turns_of_a_held_out_source_come_apart_too(tmp_path):
    tokenizer = QWEN3.tokenizer()
    (tmp_path / "set.jsonl").write_text(json.dumps({"messages": [USER, YES, AGAIN, NO]}))
    examples = load_examples(str(tmp_path / "set.jsonl"), DataConfig(train="x.jsonl"), tokenizer, end_tokens(tokenizer))
    assert [e.prompt.references for e in examples] == [("yes",), ("no",)]


answers = st.builds(
    lambda thought, form, text: {
        "none": Message("assistant", text),
        "content": Message("assistant", f"<think>\n{thought}\n</think>\n\n{text}"),
        "field": Message("assistant", text, {"reasoning_content": thought}),
    }[form],
    st.text("abc", min_size=1, max_size=4), st.sampled_from(["none", "content", "field"]), st.text("xyz\n", min_size=1, max_size=4),
)  # fmt: skip


@given(st.data(), st.sampled_from(["qwen3", "r1"]), st.lists(st.tuples(st.text("uvw", min_size=1, max_size=3), answers), min_size=1))
def test_prompts_and_responses_are_what_the_model_meets_and_says(data, name, turns):
    """Each prompt is the template's own, and a response after it says the record's thought and answer, and ends."""
    tokenizer = TOKENIZERS[name]
    ends = end_tokens(tokenizer)
    template = make_template("chat", tokenizer, ends)
    conversation = Conversation(tuple(message for text, answer in turns for message in (Message("user", text), answer)))
    one_sequence = template.is_one_sequence(conversation)
    for i, part in enumerate([conversation] if one_sequence else conversation.by_turn()):
        *_, prompt, response = template(part)
        turns_before = [message.as_dict() for message in part.messages[:-1]]
        if not one_sequence or len(turns) == 1:
            assert tokenizer.decode(prompt.tokens) == tokenizer.apply_chat_template(
                turns_before, tokenize=False, add_generation_prompt=True
            )
        learnt = tokenizer.decode([t for t, is_target in zip(*response[:2], strict=True) if is_target])
        _, answer = turns[i] if not one_sequence else turns[-1]
        thought = answer.extra.get("reasoning_content") or "".join(re.findall("<think>\n(.*)\n</think>", answer.content))
        opening = "" if name == "r1" else "<think>\n"
        text = answer.content.rpartition("</think>")[2]
        rest = text.lstrip("\n") if name == "qwen3" and text != answer.content else text
        gap = "" if name == "r1" and text != answer.content else "\n\n"
        assert learnt == f"{opening}{thought}\n</think>{gap}{rest}{tokenizer.eos_token}"


TOKENIZERS = {name: style.tokenizer() for name, style in STYLES.items()}


@given(
    st.sampled_from(["llama3", "gemma3", "phi4", "mistral"]),
    st.lists(st.tuples(st.text("uv", min_size=1), st.text("xy", min_size=1)), min_size=1),
)
def test_segments_join_to_the_whole_conversation_as_the_template_renders_it(name, turns):
    tokenizer = TOKENIZERS[name]
    messages = tuple(m for question, answer in turns for m in (Message("user", question), Message("assistant", answer)))
    template = make_template("chat", tokenizer, end_tokens(tokenizer))
    assert template.is_one_sequence(Conversation(messages))
    joined = tokenizer.decode([token for segment in template(Conversation(messages)) for token in segment.tokens])
    assert joined == tokenizer.apply_chat_template([m.as_dict() for m in messages], tokenize=False)


# --- thoughts ---


@pytest.mark.parametrize(
    ("content", "learnt"),
    [
        ("<think>\nit is\n</think>\n\nyes", "it is\n</think>\n\nyes"),
        ("it is\n</think>\n\nyes", "it is\n</think>\n\nyes"),  # as a server returns it, whose prompt opened the thought
        ("<think>it is</think>yes", "it is</think>yes"),
        ("<think>\n\n</think>\n\nyes", "\n</think>\n\nyes"),
        ("yes", "\n</think>\n\nyes"),
        ("<thought>it is</thought>yes", "it is</think>yes"),
    ],
)
@pytest.mark.parametrize("keeps", [False, True], ids=["dropped", "kept"])
def test_after_an_opened_thought_the_records_own_is_learnt(content, learnt, keeps):
    """Whether the template drops thoughts from answers or leaves them."""
    template = R1.template.replace(".split('</think>')[-1]", "") if keeps else None
    encoded = encode(R1, [USER, YES | {"content": content}], jinja=template)
    assert encoded.pairs == [("<|begin|><|User|>is it blue<|Assistant|><think>\n", f"{learnt}<|end_of_sentence|>")]
    assert encoded.counts["thoughts_closed"] == (content == "yes")


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_in_a_field_is_learnt_although_the_template_does_not_know_the_field(field):
    assert encode(R1, [USER, YES | {field: "it is"}]).pairs[0][1] == "it is\n</think>\n\nyes<|end_of_sentence|>"


@pytest.mark.parametrize("answer", [THOUGHT, FIELD, YES | {"content": "<think>yes</think>yes"}])
def test_a_thought_that_no_invitation_opens_and_the_template_drops_is_learnt(answer):
    encoded = encode(R1, [USER, answer], jinja=R1.template.replace("<think>\n", ""))
    thought = "<think>yes</think>yes" if "<think>yes" in answer["content"] else "<think>\nit is\n</think>\n\nyes"
    assert encoded.pairs == [("<|begin|><|User|>is it blue<|Assistant|>", f"{thought}<|end_of_sentence|>")]


def test_a_thought_of_which_the_template_drops_a_part_is_learnt_whole_and_once():
    content = "<think>a</think>b</think>yes"
    assert encode(QWEN3, [USER, YES | {"content": content}]).pairs[0][1] == f"{content}<|im_end|>"


def test_the_thought_of_an_earlier_turn_that_is_not_learnt_may_be_dropped_from_the_history():
    ((prompt, learnt),) = encode(QWEN3, [USER, FIELD | {"weight": 0.0}, AGAIN, NO]).pairs
    assert "it is" not in prompt.replace("is it", "") and learnt.endswith("no<|im_end|>")


@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        ("<thought>\n", "\n</thought>\n\n"),
        ("[THINK]", "[/THINK]"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<seed:think>\n", "\n</seed:think>\n\n"),
        ("<|begin_of_thought|>\n", "\n<|end_of_thought|>\n\n"),
    ],
)
def test_thoughts_open_with_tags_of_many_families(opening, closing):
    encoded = encode(R1, [USER, FIELD], [USER, YES], jinja=R1.template.replace("<think>\n", opening))
    text = "it is" + closing
    assert [learnt for _, learnt in encoded.pairs] == [f"{text}yes<|end_of_sentence|>", f"{closing}yes<|end_of_sentence|>"]


def test_an_invitation_whose_answers_close_the_thought_at_once():
    """DeepSeek V3.1: `<think>` or `</think>` by an argument, and `</think>` before every answer of the history."""
    template = R1.template.replace("'<|Assistant|>' + m", "'<|Assistant|></think>' + m").replace(
        "'<|Assistant|><think>\n'", "'<|Assistant|>' + ('<think>' if thinking else '</think>')"
    )
    on = encode(R1, [USER, YES, AGAIN, FIELD], jinja=template, template_arguments={"thinking": True})
    off = encode(R1, [USER, YES, AGAIN, NO], jinja=template, template_arguments={"thinking": False})
    with pytest.raises(InputError, match=r"x\.jsonl line 1 has a thought"):
        encode(R1, [USER, THOUGHT], jinja=template, template_arguments={"thinking": False})
    assert [learnt for _, learnt in on.pairs] == ["</think>yes<|end_of_sentence|>", "it is</think>yes<|end_of_sentence|>"]
    assert off.pairs[0][1] == "yes<|end_of_sentence|>no<|end_of_sentence|>" and off.pairs[0][0].endswith("<|Assistant|></think>")


# --- arguments ---


def test_arguments_reach_the_template():
    encoded = encode(QWEN3, [USER, YES, AGAIN, NO], template_arguments={"enable_thinking": False})
    assert [learnt for _, learnt in encoded.pairs] == ["yes<|im_end|>", "no<|im_end|>"]
    assert all(prompt.endswith("assistant\n<think>\n\n</think>\n\n") for prompt, _ in encoded.pairs)
    assert "Today is 1 Jan 2026" in encode(LLAMA3, [USER, YES], template_arguments={"date_string": "1 Jan 2026"}).pairs[0][0]


def test_arguments_decide_the_end_token():
    tokenizer = QWEN3.tokenizer(
        QWEN3.template.replace("+ content + '<|im_end|>\n'", "+ content").replace("{{- '<|im_end|>\n' }}", "{{ end }}")
    )
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert end in end_tokens(tokenizer, arguments={"end": "<|endoftext|>"}) and end not in end_tokens(tokenizer)


@pytest.mark.parametrize("thought", [THOUGHT, FIELD])
def test_a_thought_has_no_place_where_the_arguments_close_it(thought):
    with pytest.raises(
        InputError, match=r"line 1 has a thought.* no place: .*'.*</think>\\n\\n' and .*it is.*; take the thought out"
    ) as error:
        encode(QWEN3, [USER, thought], template_arguments={"enable_thinking": False})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"template_arguments": {"enable_thinkng": False}}, "no argument enable_thinkng; .*correct the name"),
        ({"template_arguments": {"tools": []}}, "template_arguments.tools is set by the program"),
        ({"template_arguments": {"add_generation_prompt": True}}, "template_arguments.add_generation_prompt is set by the program"),
        ({"template_arguments": {"enable_thinking": False}, "template": "alpaca"}, "alpaca takes no arguments"),
    ],
)
def test_arguments_that_have_no_effect_are_refused(settings, problem):
    with pytest.raises(InputError, match=problem):
        encode(QWEN3, [USER, YES], **settings)


def test_an_argument_that_is_a_switch_is_read_as_one(tmp_path):
    (tmp_path / "c.yaml").write_text("train: x.jsonl\ntemplate_arguments: {enable_thinking: off, date_string: 2026-01-01, n: 3}\n")
    config = read_config(DataConfig, tmp_path / "c.yaml", ["template_arguments.think=yes"])
    assert config.template_arguments == {"enable_thinking": False, "date_string": "2026-01-01", "n": 3, "think": True}
    assert json.loads(json.dumps(config.model_dump()))["template_arguments"]["enable_thinking"] is False


# --- marks ---

MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
UNMARKED_THOUGHT = MARKED.replace("{% generation %}", "{{ '<think>\n\n</think>\n\n' }}{%- generation -%}")


@pytest.mark.parametrize("template", [MARKED, UNMARKED_THOUGHT])
def test_marks_agree_with_the_mask_of_transformers(template):
    messages = [USER, YES, AGAIN, NO]
    encoded = encode(QWEN3, messages, jinja=template)
    (example,) = encoded.examples
    expected = encoded.tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    n = len(expected["input_ids"]) - 1  # the line break after the last end token is no part of the sequence
    assert example.sequence.tokens.tolist() == expected["input_ids"][:n]
    assert np.array_equal(example.sequence.is_target, np.array(expected["assistant_masks"][:n], bool))
    assert encoded.pairs[0][1] == "yes<|im_end|>no<|im_end|>"


@pytest.mark.parametrize(
    "template",
    [
        MARKED.replace(" + '<|im_end|>' }}{% endgeneration %}", " }}{% endgeneration %}{{ '<|im_end|>' }}"),  # the end token is not marked
        MARKED.replace("{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}",
                       "{% if m.role == 'assistant' %}{% generation %}{{ '<|im_start|>assistant\n' }}").replace(
            "{% else %}", "{% else %}{{ '<|im_start|>' + m.role + '\n' }}"),  # SmolLM3 marks the header too
    ],
    ids=["without the end token", "with the header"],
)  # fmt: skip
def test_the_end_token_is_learnt_and_the_prompt_is_not_whatever_the_marks_say(template):
    prompt = "<|im_start|>user\nis it blue<|im_end|>\n<|im_start|>assistant\n"
    assert encode(QWEN3, [USER, YES], jinja=template).pairs == [(prompt, "yes<|im_end|>")]


def test_what_a_template_does_not_mark_is_not_learnt():
    template = MARKED.replace("{% if m.role == 'assistant' %}", "{% if m.role == 'assistant' and 'no' not in m.content %}")
    encoded = encode(QWEN3, [USER, YES, AGAIN, NO], [USER, YES], jinja=template)
    assert [learnt for _, learnt in encoded.pairs] == ["yes<|im_end|>", "yes<|im_end|>"]


def test_a_tokenizer_may_have_one_template_for_tools_and_one_with_marks():
    tokenizer = QWEN3.tokenizer()
    tokenizer.chat_template = {"default": MARKED, "tool_use": QWEN3.template}
    template = make_template("chat", tokenizer, end_tokens(tokenizer), {"enable_thinking": False})
    record = Conversation(tuple(map(as_message, [USER, YES])))
    plain, with_tools = (template(r)[-1] for r in (record, replace(record, tools=({"name": "weather"},))))
    assert tokenizer.decode(plain.tokens[: plain.gold]) == tokenizer.decode(with_tools.tokens[: with_tools.gold]) == "yes<|im_end|>"


SPACED = MARKED.replace("{% generation %}", "{{ ' ' }}{% generation %}").replace("m.role + '\n' }}", "m.role }}").replace(
    "{% else %}", "{% else %}{{ '\n' }}"
)  # fmt: skip


def test_marks_give_a_prompt_where_invitation_and_answer_differ():
    """The invitation ends with a line break, and an answer begins with a space."""
    ((prompt, learnt),) = encode(QWEN3, [USER, YES], jinja=SPACED).pairs
    assert prompt == "<|im_start|>user\nis it blue<|im_end|>\n<|im_start|>assistant " and learnt == "yes<|im_end|>"
    with_header = SPACED.replace("{{ ' ' }}{% generation %}{{", "{% generation %}{{ '<|im_start|>assistant ' +").replace(
        "{{ '<|im_start|>' + m.role }}{% if m.role == 'assistant' %}", "{% if m.role == 'assistant' %}"
    ).replace("{% else %}", "{% else %}{{ '<|im_start|>' + m.role }}")  # fmt: skip
    ((prompt, learnt),) = encode(QWEN3, [USER, YES], jinja=with_header).pairs
    assert prompt == "<|im_start|>user\nis it blue<|im_end|>\n<|im_start|>assistant" and learnt == " yes<|im_end|>"


# --- templates that do not work ---


def test_a_template_without_a_fixed_prompt_is_refused_with_both_renderings():
    template = SPACED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    with pytest.raises(
        InputError, match=r"no fixed prompt for x\.jsonl line 1: .*'.*assistant\\n' and .*'.*assistant yes<\|im_end\|>\\n'; set"
    ):
        encode(QWEN3, [USER, YES], jinja=template)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("{{ 1 + 'a' }}", "TypeError: unsupported operand"),
        ("{{ x.y.z }}", "UndefinedError: 'x' is undefined"),
        ("{{ raise_exception('no\nway') }}", "no$"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{% for m in messages %}{{ m.content['a']['b'] }}{% endfor %}", "UndefinedError"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ messages.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages | unknown_filter }}", "TemplateAssertionError|TemplateSyntaxError|No filter"),
        ("{% generation %}{{ 1 + 'a' }}{% endgeneration %}", "TypeError: unsupported operand"),
        ("{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}", "RecursionError"),
    ],
)
def test_a_template_that_raises_is_one_sentence_with_the_record(broken, reason):
    with pytest.raises(InputError, match=rf"the chat template refuses x\.jsonl line 1: .*{reason}") as error:
        encode(QWEN3, [USER, YES], jinja=broken)
    assert "\n" not in str(error.value)


def test_a_template_that_refuses_one_record_names_that_record():
    with pytest.raises(InputError, match=r"refuses x\.jsonl line 2: Conversation roles must alternate"):
        encode(GEMMA3, [USER, YES], [USER, USER, YES])


SILENT = "{% for m in messages if m.role in ('user', 'assistant') %}<|im_start|>{{ m.role + '\n' + m.content }}<|im_end|>{% endfor %}"
SILENT += "{% if add_generation_prompt %}<|im_start|>{{ 'assistant\n' }}{% endif %}"


@pytest.mark.parametrize(
    ("row", "role", "jinja"),
    [
        ([{"role": "system", "content": "Be brief"}, USER, YES], "system", SILENT),
        ([USER, NO, {"role": "tool", "content": "blue"}, YES], "tool", SILENT),
        ([USER, YES], "assistant", SILENT.replace("m.content", "(m.content if m.role == 'user' else '')")),
        ([USER, YES], "user", SILENT.replace("m.content", "(m.content if m.role != 'user' else '')")),
    ],
)
def test_a_turn_that_the_template_leaves_out_is_refused(row, role, jinja):
    with pytest.raises(InputError, match=rf"renders nothing of the {role} turn of x\.jsonl line 1; take that turn out"):
        encode(QWEN3, row, jinja=jinja)


def test_a_turn_in_another_form_is_rendered():
    row = [USER, NO, {"role": "tool", "content": '"blue"\n'}, YES]
    ((prompt, _),) = encode(
        QWEN3, row, jinja=SILENT.replace(" if m.role in ('user', 'assistant')", "").replace("m.content", "m.content | tojson")
    ).pairs
    assert r'tool\n"\"blue\"\n"' in prompt.replace("tool\n", r"tool\n")


def test_a_template_that_leaves_out_the_configs_system_prompt_is_refused():
    with pytest.raises(InputError, match="nothing of the system turn .*data.system_prompt"):
        encode(QWEN3, [USER, YES], jinja=SILENT, system_prompt="Be brief")


MUTATIONS = [
    "{{",
    "}}",
    "{%",
    "%}",
    "content",
    "'",
    "| trim",
    " + 1",
    "[0]",
    "<think>",
    "</think>",
    "loop.last",
    "x.y",
    "| tojson",
    "messages",
]
TEMPLATES = [(style, style.template) for style in STYLES.values()] + [(QWEN3, MARKED), (QWEN3, SPACED), (QWEN3, SILENT)]
edits = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 12), st.sampled_from(["", *MUTATIONS]))


@given(st.sampled_from(TEMPLATES), st.lists(edits, min_size=1, max_size=2))
def test_a_mutated_template_gives_examples_or_one_sentence(base, changes):
    style, template = base
    for position, length, text in changes:
        start = int(position * len(template))
        template = template[:start] + text + template[start + length :]
    rows = [USER, YES], [USER, THOUGHT, AGAIN, FIELD], [USER, YES | {"weight": 0}, AGAIN, NO], [USER, YES, AGAIN]
    try:
        examples = encode(style, *rows, jinja=template or " ").examples
    except InputError as error:
        assert "\n" not in str(error)
    else:
        for example in examples:
            assert example.sequence.tokens[: len(example.prompt.tokens)].tolist() == example.prompt.tokens.tolist()
            assert not example.sequence.is_target[0]


def test_alpaca_does_not_need_the_chat_template_to_work():
    assert encode(QWEN3, [USER, YES], jinja="{{ 1 + 'a' }}", template="alpaca").pairs[0][1] == "yes<|im_end|>"
