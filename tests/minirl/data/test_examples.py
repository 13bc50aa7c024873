"""Examples: end tokens, templates, targets, length limits, and splits that share no prompt."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from minirl.config.data import DataConfig
from minirl.data.conversation import Conversation, Message
from minirl.data.examples import load_data
from minirl.data.splits import split_of_prompt
from minirl.data.templates import end_tokens, make_template
from minirl.errors import InputError
from tests.minirl.data.chatml import SPECIAL, TEMPLATE, chatml_tokenizer
from tests.tiny import tiny_tokenizer

TOKENIZER = chatml_tokenizer()
ENDS = end_tokens(TOKENIZER)
TEXT, START, END = (TOKENIZER.convert_tokens_to_ids(token) for token in SPECIAL)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
systems = st.none() | texts


def encode(text):
    return TOKENIZER.encode(text, add_special_tokens=False)


def records(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def load(tmp_path):
    """Loads rows as training data; validation and test have one prompt each, so that only `train` matters."""
    held_out = records(tmp_path / "held_out.jsonl", {"prompt": "held out", "completion": "yes"})

    def load(*rows, tokenizer=TOKENIZER, ends=ENDS, **settings):
        settings = {"validation": held_out, "test": held_out, **settings}
        return load_data(DataConfig(train=records(tmp_path / "train.jsonl", *rows), **settings), tokenizer, ends)

    return load


# --- end tokens ---


def test_the_chat_templates_end_token_comes_after_that_of_the_tokenizer():
    assert ENDS == (TEXT, END)
    assert end_tokens(chatml_tokenizer(template=None)) == (TEXT,)


@pytest.mark.parametrize(("listed", "expected"), [(7, (TEXT, 7, END)), ([END, 8], (TEXT, END, 8)), (None, (TEXT, END))])
def test_the_generation_config_may_list_several_end_tokens(tmp_path, listed, expected):
    config = GenerationConfig(eos_token_id=listed)
    config.save_pretrained(tmp_path)
    assert end_tokens(TOKENIZER, config) == end_tokens(TOKENIZER, str(tmp_path)) == expected


def test_a_directory_without_generation_config_is_no_error(tmp_path):
    assert end_tokens(TOKENIZER, str(tmp_path)) == (TEXT, END)


def test_a_model_that_never_ends_is_refused():
    with pytest.raises(InputError, match="neither the tokenizer nor the generation config names an end token"):
        end_tokens(chatml_tokenizer(template=None, eos=None))


# --- templates ---


def test_alpaca_is_the_text_of_the_reference_without_bos(load):
    data = load(
        {"instruction": "Name a city.", "output": "Paris"},
        {"instruction": "Is it a city?", "input": "Paris", "output": "\nYes"},
        template="alpaca",
    )
    plain, with_input = (example.prompt for example in data.train)
    assert TOKENIZER.decode(plain.tokens) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nName a city.\n\n### Response:\n"
    )
    assert TOKENIZER.decode(with_input.tokens) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nIs it a city?\n\n### Input:\nParis\n\n### Response:\n"
    )
    assert with_input.gold.tolist() == [*encode("\nYes"), TEXT]


def test_chat_puts_the_context_under_the_instruction_and_ends_with_the_templates_end_token(load):
    (example,) = load({"instruction": "Is it a city?", "context": "Paris", "response": "Yes"}).train
    assert TOKENIZER.decode(example.prompt.tokens) == "<|im_start|>user\nIs it a city?\n\nParis<|im_end|>\n<|im_start|>assistant\n"
    assert example.prompt.gold.tolist() == [*encode("Yes"), END]


def test_the_system_prompt_of_the_config_applies_to_records_without_one(load):
    with_system = {"messages": [{"role": "system", "content": "of the record"}, {"role": "user", "content": "a"}]}
    data = load({"prompt": "a"}, with_system, system_prompt="of the config")
    filled, unchanged = (TOKENIZER.decode(example.prompt.tokens) for example in data.train)
    assert filled.startswith("<|im_start|>system\nof the config<|im_end|>\n<|im_start|>user\na")
    assert "of the config" not in unchanged and "of the record" in unchanged


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4), systems, st.sampled_from(["chat", "alpaca"]))
def test_the_targets_are_the_assistants_words_and_end_tokens_of_every_turn(turns, system, template):
    messages = [Message("system", system)] if system is not None else []
    for question, answer in turns:
        messages += [Message("user", question), Message("assistant", answer)]
    segments = make_template(template, TOKENIZER, ENDS)(Conversation(tuple(messages)))
    targets = [token for segment in segments for token in segment.tokens[: segment.targets]]
    end = SPECIAL[2] if template == "chat" else SPECIAL[0]
    assert TOKENIZER.decode(targets) == "".join(answer + end for _, answer in turns)
    for segment, (question, _) in zip(segments[::2], turns, strict=True):
        assert segment.targets == 0 and question in TOKENIZER.decode(segment.tokens)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=3))
def test_chat_segments_join_to_the_whole_conversation_as_the_template_renders_it(turns):
    messages = [message for question, answer in turns for message in (Message("user", question), Message("assistant", answer))]
    segments = make_template("chat", TOKENIZER, ENDS)(Conversation(tuple(messages)))
    rendered = TOKENIZER.apply_chat_template([message.as_dict() for message in messages], tokenize=False)
    assert TOKENIZER.decode([token for segment in segments for token in segment.tokens]) == rendered


@pytest.mark.parametrize("template", ["chat", "alpaca"])
def test_only_assistants_turns_of_weight_1_are_learnt(template):
    turns = [("user", "Hi", 1), ("assistant", "WRONG", 0), ("user", "again", 1), ("assistant", "right", 1)]
    segments = make_template(template, TOKENIZER, ENDS)(Conversation(tuple(Message(r, c, weight=weight) for r, c, weight in turns)))
    whole = TOKENIZER.decode([token for segment in segments for token in segment.tokens])
    learnt = TOKENIZER.decode([token for segment in segments for token in segment.tokens[: segment.targets]])
    assert "WRONG" in whole and learnt.removesuffix("<|im_end|>").removesuffix("<|endoftext|>") == "right"


def test_the_template_receives_tools_and_the_extra_fields_of_a_message():
    template = "{% for tool in tools or [] %}({{ tool['name'] }}){% endfor %}" + TEMPLATE.replace(
        "message['content']", "(message.reasoning_content or '') + message['content']"
    )
    messages = (Message("user", "Hi"), Message("tool", "sunny"), Message("assistant", "yes", {"reasoning_content": "thought "}))
    segments = make_template("chat", chatml_tokenizer(template=template), ENDS)(Conversation(messages, tools=({"name": "weather"},)))
    prompt, response = (TOKENIZER.decode(segment.tokens) for segment in segments)
    assert prompt.startswith("(weather)<|im_start|>user\nHi") and "<|im_start|>tool\nsunny" in prompt
    assert response.startswith("thought yes<|im_end|>") and segments[0].targets == 0


@pytest.mark.parametrize(
    "conversation",
    [
        Conversation((Message("user", "Hi"),), tools=({"name": "weather"},)),
        Conversation((Message("user", "Hi"), Message("tool", "sunny"))),
        Conversation((Message("user", "Hi"), Message("assistant", "yes", {"reasoning_content": "thought"}))),
    ],
)
def test_the_alpaca_text_refuses_what_it_cannot_hold(conversation):
    with pytest.raises(InputError, match="a record has tools or extra fields of a message, which the Alpaca text cannot hold"):
        make_template("alpaca", TOKENIZER, ENDS)(conversation)


def test_tools_and_extra_fields_belong_to_the_text_that_decides_the_split():
    plain = Conversation((Message("user", "Hi"), Message("assistant", "yes")))
    assert plain.prompt_text == "Hi\n"
    named = Conversation((Message("user", "Hi", {"name": "Ann"}), Message("assistant", "yes", {"name": "Bob"})))
    assert "Ann" in named.prompt_text and "Bob" not in named.prompt_text
    assert "weather" in Conversation(plain.messages, tools=({"name": "weather"},)).prompt_text


def test_prompt_and_response_are_tokenised_apart_even_if_the_tokenizer_would_merge_them(load):
    question, answer = "Why?", "\nBecause"
    whole = encode(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>")
    (example,) = load({"prompt": question, "completion": answer}).train
    prompt = encode(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
    assert whole[: len(prompt)] != prompt, "the tokenizer must merge across the border, or this test proves nothing"
    assert example.prompt.tokens.tolist() == prompt and example.prompt.gold.tolist() == [*encode(answer), END]


def test_chat_without_a_chat_template_is_refused(load):
    with pytest.raises(InputError, match="has no chat template, .*alpaca"):
        load({"prompt": "a", "completion": "b"}, tokenizer=chatml_tokenizer(template=None))


def test_a_template_that_refuses_a_record_names_it(load):
    strict = chatml_tokenizer(
        template="{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
    )
    with pytest.raises(InputError, match=r"refuses .*train\.jsonl line 1: no system role"):
        load({"prompt": "a", "completion": "b"}, tokenizer=strict, system_prompt="of the config")


def test_a_template_that_never_closes_an_answer_is_refused(load):
    endless = chatml_tokenizer(template=TEMPLATE.replace("<|im_end|>", ""))
    assert end_tokens(endless) == (TEXT,)
    with pytest.raises(InputError, match="closes an assistant's turn with none of the model's end tokens"):
        load({"prompt": "a", "completion": "b"}, tokenizer=endless, ends=(TEXT,))


def test_an_alpaca_system_prompt_is_refused(load):
    with pytest.raises(InputError, match="alpaca has a fixed preamble"):
        load({"prompt": "a", "completion": "b"}, template="alpaca", system_prompt="of the config")


# --- examples ---


@pytest.mark.parametrize("template", ["chat", "alpaca"])
def test_the_prompt_begins_the_sequence_and_the_gold_response_ends_it(load, template):
    turns = [
        {"role": role, "content": text} for role, text in [("user", "Hi"), ("assistant", "Hello"), ("user", "2+2?"), ("assistant", "4")]
    ]
    (example,) = load({"messages": turns}, template=template).train
    prompt, sequence = example.prompt, example.sequence
    assert sequence.tokens.tolist() == [*prompt.tokens, *prompt.gold]
    assert prompt.tokens.dtype == prompt.gold.dtype == sequence.tokens.dtype == np.int64 and sequence.is_target.dtype == bool
    end = SPECIAL[2] if template == "chat" else SPECIAL[0]
    assert TOKENIZER.decode(sequence.tokens[sequence.is_target]) == f"Hello{end}4{end}"
    assert TOKENIZER.decode(prompt.gold) == f"4{end}" and prompt.references == ("4",)


def test_a_record_without_response_can_be_sampled_from_but_has_no_targets(load):
    data = load({"prompt": "Hi"}, {"prompt": "Ho", "completion": "Hm"})
    example = data.train[0]
    assert example.prompt.gold.size == 0 and example.sequence.targets == 0 and example.prompt.references == ()
    assert TOKENIZER.decode(example.prompt.tokens).endswith("<|im_start|>assistant\n")
    assert data.report["without_response"] == 1


def test_a_long_response_is_cut_loses_its_end_token_and_is_counted(load):
    answer = encode("abcdefgh")
    limit = len(answer)
    fits = load({"prompt": "a", "completion": "abcdefgh"}, max_response_tokens=limit + 1)
    cut = load({"prompt": "a", "completion": "abcdefgh"}, max_response_tokens=limit)
    assert fits.train[0].prompt.gold.tolist() == [*answer, END] and fits.report["responses_truncated"] == 0
    assert cut.train[0].prompt.gold.tolist() == answer and cut.report["responses_truncated"] == 1
    assert cut.train[0].sequence.targets == limit and cut.train[0].prompt.references == ("abcdefgh",)


def test_a_long_prompt_is_an_error_that_names_record_and_length(load):
    rows = {"prompt": "a", "completion": "b"}, {"prompt": "word " * 60, "completion": "b"}
    length = len(encode(f"<|im_start|>user\n{'word ' * 60}<|im_end|>\n<|im_start|>assistant\n"))
    with pytest.raises(InputError, match=rf"train\.jsonl line 2 has {length} tokens, more than data\.max_prompt_tokens = 100; .*drop"):
        load(*rows, max_prompt_tokens=100)
    assert len(load(*rows, max_prompt_tokens=length).train) == 2
    dropped = load(*rows, max_prompt_tokens=length - 1, overlong_prompts="drop")
    assert len(dropped.train) == 1 and dropped.report["overlong_prompts_dropped"] == 1 and dropped.report["train"] == 1


def test_data_whose_every_prompt_is_dropped_is_refused(load):
    with pytest.raises(InputError, match="every prompt of the train data is longer than data.max_prompt_tokens = 3"):
        load({"prompt": "a", "completion": "b"}, max_prompt_tokens=3, overlong_prompts="drop")


def test_an_end_token_inside_a_response_is_refused(load):
    with pytest.raises(InputError, match=r"line 1 has the end token '<\|im_end\|>' inside a response"):
        load({"prompt": "a", "completion": "b<|im_end|>c"})


def test_the_tiny_test_models_tokenizer_serves_both_templates(load, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer(tmp_path, 64))
    for template in ("chat", "alpaca"):
        (example,) = load(
            {"prompt": "t5 t6", "completion": "t7 t8"}, tokenizer=tokenizer, ends=end_tokens(tokenizer), template=template
        ).train
        assert example.prompt.gold.tolist() == [7, 8, 1]


# --- splits ---


prompts = st.lists(st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1, max_size=4), min_size=1, max_size=30)


@given(prompts, st.randoms())
def test_a_prompts_split_depends_on_its_words_alone(words, random):
    shares = {"validation": 0.3, "test": 0.3}
    splits = {word: split_of_prompt(word, shares) for word in words}
    shuffled = random.sample(words, len(words))
    assert {word: split_of_prompt(word, shares) for word in shuffled} == splits
    for word in words:
        if any(character.isalnum() for character in word):
            assert split_of_prompt(f" {word.upper()}  ?", shares) == split_of_prompt(word, shares)


def test_the_shares_are_met_and_the_second_split_begins_where_the_first_ends():
    shares = {"validation": 0.1, "test": 0.2}
    counts = Counter(split_of_prompt(f"prompt {i}", shares) for i in range(20_000))
    assert counts["validation"] == pytest.approx(2000, abs=4 * 42) and counts["test"] == pytest.approx(4000, abs=4 * 57)  # 4 sigma


def test_no_prompt_is_in_two_splits_and_no_record_is_lost(load):
    rows = [{"prompt": f"question {i % 60}", "completion": f"answer {i}"} for i in range(240)]
    data = load(*rows, validation=None, test=None, validation_share=0.2, test_share=0.2)
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    prompts_by_split = {name: {TOKENIZER.decode(example.prompt.tokens) for example in split} for name, split in splits.items()}
    assert sum(len(texts) for texts in prompts_by_split.values()) == len(set().union(*prompts_by_split.values())) == 60
    assert sum(data.report[name] for name in splits) + data.report["merged"] == data.report["records"] == 240
    assert len(data.train) == 4 * len(prompts_by_split["train"]), "in training each response is a separate example"
    for name in ("validation", "test"):
        assert len(splits[name]) == len(prompts_by_split[name]) and all(len(example.prompt.references) == 4 for example in splits[name])
    indices = [example.prompt.index for split in splits.values() for example in split]
    assert len(set(indices)) == len(indices)


def test_separate_sources_are_used_completely_and_indices_continue(load):
    data = load(*({"prompt": f"{i}", "completion": "b"} for i in range(5)))
    assert [example.prompt.index for example in data.train + data.validation + data.test] == list(range(7))
    assert data.report == {
        "records": 7, "train": 5, "validation": 1, "test": 1, "overlong_prompts_dropped": 0, "responses_truncated": 0,
        "without_response": 0, "merged": 0, "turns_apart": 0, "thoughts_closed": 0,
    }  # fmt: skip


def test_only_the_first_records_are_read_under_a_limit(load):
    data = load(*({"prompt": f"{i}", "completion": "b"} for i in range(5)), limit=2)
    assert len(data.train) == 2


def test_too_few_prompts_to_split_are_refused_with_advice(load):
    sentences = set()
    for prompt in "abcdefghijklmnopqrstuvwxyz":  # whichever split the only prompt is in
        with pytest.raises(InputError, match="too few different prompts to split, so ") as refused:
            load({"prompt": prompt, "completion": "b"}, validation=None, test=None, validation_share=0.3, test_share=0.3)
        sentences.add(str(refused.value).partition(", so ")[2])
    assert sentences == {
        "none is left to train on; set data.validation and data.test",
        "validation is empty; raise data.validation_share or set data.validation",
    }
