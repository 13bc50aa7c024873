"""Training data from several sources: limits, shares, one common split, and counts for each source."""

import json

import pytest

from minirl.config.data import DataConfig
from minirl.config.reader import validate_config
from minirl.data.conversation import Conversation, Message
from minirl.data.examples import load_data
from minirl.data.splits import read_sources
from minirl.data.templates import end_tokens
from minirl.errors import InputError
from tests.minirl.data.chatml import chatml_tokenizer

SIZES = {"scarce": 300, "plenty": 1000}


def read(source: str, limit: int | None) -> list[Conversation]:
    return [Conversation((Message("user", f"{source} {i}"),)) for i in range(SIZES[source])][:limit]


def sizes(train: list, limit: int | None = None) -> dict[str, int]:
    config = validate_config(DataConfig, {"train": train})
    records_by_source = read_sources(config.train, limit, read)
    for name, records in records_by_source.items():
        assert [record.messages[0].content for record in records] == [f"{name} {i}" for i in range(len(records))], (
            "the first ones, in order"
        )
    return {name: len(records) for name, records in records_by_source.items()}


@pytest.mark.parametrize(
    ("train", "limit", "expected"),
    [
        (["scarce", "plenty"], None, (300, 1000)),
        (["scarce", {"source": "plenty", "limit": 20}], None, (300, 20)),
        (["scarce", {"source": "plenty", "limit": 20}], 10, (10, 10)),
        ([{"source": "scarce", "share": 0.75}, {"source": "plenty", "share": 0.25}], None, (300, 100)),
        ([{"source": "scarce", "share": 0.2}, {"source": "plenty", "share": 0.8}], None, (250, 1000)),
        ([{"source": "scarce", "share": 0.5, "limit": 40}, {"source": "plenty", "share": 0.5}], None, (40, 40)),
    ],
)
def test_limits_and_shares_take_the_first_records(train, limit, expected):
    assert sizes(train, limit) == dict(zip(SIZES, expected, strict=True))


@pytest.mark.parametrize(
    ("train", "complaint"),
    [
        (["a", {"source": "a", "limit": 3}], "names a source twice: a, a"),
        ([{"source": "a", "share": 0.5}, "b"], "for every source or for none"),
        ([{"source": "a", "share": 0.5}, {"source": "b", "share": 0.4}], r"add up to 1; they are \[0.5, 0.4\]"),
        ([{"source": "a", "limt": 3}], r"train\.0\.limt is not a known key; did you mean limit\?"),
        ([], "train"),
        (3, "train = 3 does not fit"),
    ],
)
def test_contradictory_sources_are_refused(train, complaint):
    with pytest.raises(InputError, match=complaint):
        validate_config(DataConfig, {"train": train})


def test_several_files_are_one_data_set_with_one_split_and_counts_of_each(tmp_path):
    names = []
    for name in ("chat", "words"):
        path = tmp_path / f"{name}.jsonl"
        rows = [{"prompt": f"{'common' if i < 10 else name} {i}", "completion": name} for i in range(60)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        names.append(str(path))
    tokenizer = chatml_tokenizer()
    data = load_data(DataConfig(train=names, validation_share=0.2, test_share=0.2), tokenizer, end_tokens(tokenizer))
    assert data.report["records"] == 120 and [data.report[f"from_{name}"] for name in names] == [60, 60]
    splits = (data.train, data.validation, data.test)
    assert len({example.prompt.index for split in splits for example in split}) == sum(map(len, splits)), "indices are unique in the run"
    texts = [{tokenizer.decode(example.prompt.tokens) for example in split} for split in splits]
    assert sum(map(len, texts)) == len(set.union(*texts)) == 110, "a prompt of both sources is in one split"
    held_out = {example.prompt.references for split in splits[1:] for example in split}
    assert held_out == {("chat",), ("words",), ("chat", "words")}
