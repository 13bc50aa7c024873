"""Named sets of held-out prompts: the records they select, and the inputs that change their hash."""

import json
from dataclasses import replace

import pytest

from minirl.config.data import DataConfig
from minirl.config.evaluation import EvaluateConfig, EvaluationSetConfig
from minirl.data.examples import load_examples
from minirl.data.templates import end_tokens
from minirl.errors import InputError
from minirl.evaluation.sets import load_sets
from tests.minirl.data.chatml import chatml_tokenizer

TOKENIZER = chatml_tokenizer()
ENDS = end_tokens(TOKENIZER)
ROWS = [
    {"prompt": "one", "completion": "a b c"},
    {"prompt": "two", "completion": ["a", "a b c d"]},
    {"prompt": "three"},
    {"prompt": "four", "completion": "a b c d e"},
]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


@pytest.fixture
def load(source):
    def load(rouge_tokenizer="any_script", **sets):
        sets = {name: EvaluationSetConfig(**values) for name, values in sets.items()}
        config = EvaluateConfig(prompts=2, sets=sets, rouge_tokenizer=rouge_tokenizer)
        data = DataConfig(train=source)
        test = [next(load_examples(source, data, TOKENIZER, ENDS))]
        return load_sets(config, data, test, TOKENIZER, ENDS)

    return load


def prompts(evaluation_set):
    return [example.prompt.index for example in evaluation_set.examples]


def test_the_runs_test_split_and_another_source(load, source):
    test_split, other = load(test_split={}, other={"source": source})
    assert (test_split.name, prompts(test_split), test_split.source) == ("test_split", [0], "the run's test split")
    assert (other.name, prompts(other), other.source) == ("other", [0, 1], source)
    assert other.references == [("a b c",), ("a", "a b c d")]


def test_a_set_may_have_more_prompts_and_leaves_out_prompts_without_a_response(load, source):
    (all_records,) = load(all_records={"source": source, "prompts": 10})
    assert prompts(all_records) == [0, 1, 3]  # record 2 has no response


def test_short_gold_responses_are_left_out_by_their_first_reference(load, source):
    (long,) = load(long={"source": source, "min_gold_words": 3})
    assert prompts(long) == [0, 3]
    with pytest.raises(InputError, match=r"no record of the set stages.evaluate.sets.none has a response of 6 words or more"):
        load(none={"source": source, "min_gold_words": 6})


def test_the_hash_changes_with_prompts_and_references(load, source):
    first, again, fewer = load(a={"source": source}, b={"source": source}, c={"source": source, "prompts": 1})
    assert first.sha256 == again.sha256 != fewer.sha256
    from minirl.evaluation.sets import _digest

    changed = [replace(e, prompt=replace(e.prompt, references=("other",))) for e in first.examples]
    assert _digest(first.examples) == first.sha256 != _digest(changed)


def test_gold_words_of_a_script_without_spaces_are_its_characters(load, tmp_path):
    path = tmp_path / "chinese.jsonl"
    rows = [{"prompt": "one", "completion": "好。"}, {"prompt": "two", "completion": "今天天气很好。"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (long,) = load(long={"source": str(path), "min_gold_words": 6})
    assert prompts(long) == [1]


def test_the_papers_tokenizer_is_refused_where_it_sees_nothing(load, source, tmp_path):
    path = tmp_path / "russian.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"p{n}", "completion": "хорошая погода"}) + "\n" for n in range(2)))
    with pytest.raises(InputError, match="no response of the set stages.evaluate.sets.russian has any.*set rouge_tokenizer: any_script"):
        load("paper", english={"source": source}, russian={"source": str(path)})
    assert len(load(english={"source": source}, russian={"source": str(path)})) == 2
    assert len(load("paper", english={"source": source})) == 1
