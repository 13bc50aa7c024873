"""The reference's tokenised files: read back as written, used id by id, and refused if foreign or cut off."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minirl.config.data import CorpusConfig, DataConfig
from minirl.data.conversation import Message
from minirl.data.corpus import load_corpus
from minirl.data.examples import load_data
from minirl.data.records import read_conversations
from minirl.data.reference_files import iterate_records, open_token_file, open_token_files
from minirl.data.templates import end_tokens
from minirl.errors import InputError
from tests.minirl.data.chatml import chatml_tokenizer
from tests.minirl.data.reference_writer import SEPARATORS, write_indexed, write_split

TOKENIZER = chatml_tokenizer()
ENDS = end_tokens(TOKENIZER)
END = TOKENIZER.eos_token_id
ROWS = [
    {"instruction": "Name a city.", "input": "", "output": "Paris"},
    {"instruction": "Is it a city?", "input": "Rome", "output": "\nYes"},
    {"instruction": "Greet", "input": "", "output": "Hi"},
]
ID_TYPES = pytest.mark.parametrize("kind", ["H", "i"])


@given(st.lists(st.lists(st.integers(0, 65534), max_size=5), max_size=6), st.sampled_from("Hi"))
def test_records_are_read_as_they_were_written(tmp_path_factory, records, kind):
    file = open_token_file(write_indexed(tmp_path_factory.mktemp("data") / "train_0.bin", records, kind))
    assert len(file) == len(records) and file.separator == SEPARATORS[kind]
    assert [file.record(i).tolist() for i in range(len(file))] == records


def test_shards_follow_one_another_and_a_directory_names_its_splits(tmp_path):
    for number in range(3):
        write_indexed(tmp_path / f"train_{number}.bin", [[number], [number, 7]])
    write_indexed(tmp_path / "valid_0.bin", [[9]])
    for source, split, expected in [
        (tmp_path, "train", [[0], [0, 7], [1], [1, 7], [2], [2, 7]]),
        (tmp_path / "train_0.bin", "valid", [[0], [0, 7], [1], [1, 7], [2], [2, 7]]),
        (tmp_path / "train_2.bin", "train", [[2], [2, 7]]),
        (tmp_path, "valid", [[9]]),
    ]:
        records = list(iterate_records(open_token_files(str(source), split)))
        assert [tokens.tolist() for _, tokens in records] == expected
    assert records[0][0] == f"{tmp_path / 'valid_0.bin'} record 0"


# --- prompts and responses ---


def load(train, **settings):
    return load_data(DataConfig(**{"train": str(train), "validation": str(train), "test": str(train)} | settings), TOKENIZER, ENDS)


@ID_TYPES
def test_prompts_and_responses_are_the_ids_of_the_file_and_references_come_from_the_rows(tmp_path, kind):
    for split in ("train", "valid"):
        write_split(tmp_path, split, ROWS, TOKENIZER, kind=kind)
    data = load(tmp_path, test=str(tmp_path / "valid_0.bin"), limit=2)
    written = [tokens.tolist() for _, tokens in iterate_records(open_token_files(str(tmp_path), "train"))]
    for examples in (data.train, data.validation, data.test):
        assert len(examples) == 2
        for example, record, row in zip(examples, written, ROWS, strict=False):
            prompt_length = record.index(SEPARATORS[kind])
            assert example.prompt.tokens.tolist() == record[:prompt_length] and example.prompt.tokens.dtype == np.int64
            assert example.prompt.gold.tolist() == record[prompt_length + 1 :] and example.prompt.gold[-1] == END
            assert example.prompt.references == (row["output"],)
            assert example.sequence.tokens.tolist() == record[:prompt_length] + record[prompt_length + 1 :]
            assert example.sequence.is_target.tolist() == [False] * prompt_length + [True] * (len(record) - prompt_length - 1)
    assert len({example.prompt.index for split in (data.train, data.validation, data.test) for example in split}) == 6


def test_ids_are_never_encoded_again(tmp_path):
    """The response is cut as no tokenizer would cut it, and the prompt has an end token inside."""
    a, b, whole = (TOKENIZER.encode(text, add_special_tokens=False) for text in ("a", "b", "ab"))
    odd = [*a, END, *b, 65535, *a, *b, END]
    assert TOKENIZER.decode([*a, *b]) == TOKENIZER.decode(whole)
    data = load(write_indexed(tmp_path / "train_0.bin", [odd]))
    assert data.train[0].sequence.tokens.tolist() == [*a, END, *b, *a, *b, END]
    assert data.train[0].prompt.references == ("ab",), "without rows beside the file, the reference is the decoded response"


def test_prompts_alone_have_references_from_the_rows_and_no_gold_response(tmp_path):
    write_split(tmp_path, "train", [*ROWS, {"instruction": "Greet", "input": "", "output": "Hello"}], TOKENIZER, only_prompt=True)
    data = load(tmp_path, validation=str(tmp_path / "train_0.bin"), test=str(tmp_path / "train_0.bin"))
    assert [example.prompt.references for example in data.train] == [("Paris",), ("\nYes",), ("Hi",), ("Hello",)]
    assert all(len(example.prompt.gold) == example.sequence.targets == 0 for example in data.train)
    assert data.report["without_response"] == 12


def test_shares_are_split_by_the_prompts_text_and_equal_prompts_are_merged(tmp_path):
    rows = [
        {"instruction": f"Say {word}", "input": "", "output": f"{word}{n}"} for word in ("one", "two", "three", "four") for n in range(5)
    ]
    write_split(tmp_path, "train", rows, TOKENIZER)
    data = load(tmp_path, validation=None, test=None, validation_share=0.3, test_share=0.3)
    words = [{example.prompt.references[0][:-1] for example in split} for split in (data.train, data.validation, data.test)]
    assert not (words[0] & words[1] or words[0] & words[2] or words[1] & words[2])
    assert all(len(example.prompt.references) == 5 for example in data.validation + data.test)


def test_limits_hold_for_tokenised_records_too(tmp_path):
    write_split(tmp_path, "train", ROWS, TOKENIZER)
    with pytest.raises(InputError, match=r"the prompt of .*train_0.bin record 1 has \d+ tokens, more than data.max_prompt_tokens"):
        load(tmp_path / "train_0.bin", max_prompt_tokens=len(TOKENIZER.encode("x" * 140)))
    data = load(tmp_path / "train_0.bin", max_response_tokens=2)
    assert data.report["responses_truncated"] == 9
    assert [len(example.prompt.gold) for example in data.train] == [2, 2, 2]


def test_a_tokenizer_without_a_chat_template_needs_none_here(tmp_path):
    tokenizer = chatml_tokenizer(template=None)
    write_split(tmp_path, "train", ROWS, tokenizer)
    source = str(tmp_path / "train_0.bin")
    assert len(load_data(DataConfig(train=source, validation=source, test=source), tokenizer, end_tokens(tokenizer)).train) == 3


def test_the_references_raw_and_valid_rows_are_records(tmp_path):
    """raw.jsonl has instruction, input and output. Processed and held-out rows have the prompt as well, and perhaps several outputs."""
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    write_split(tmp_path, "valid", ROWS, TOKENIZER)
    raw, valid = (read_conversations(str(tmp_path / name), ignored=["prompt"]) for name in ("raw.jsonl", "valid.jsonl"))
    assert [(c.messages, c.context, c.references) for c in raw] == [(c.messages, c.context, c.references) for c in valid]
    assert raw[1].messages == (Message("user", "Is it a city?"), Message("assistant", "\nYes")) and raw[1].context == "Rome"
    row = {"id": "sinst-1", "prompt": "Below is...", "instruction": "Greet", "input": "", "output": ["Hi", "Hello"]}
    (tmp_path / "several.jsonl").write_text(json.dumps(row))
    assert read_conversations(str(tmp_path / "several.jsonl"), ignored=["id", "prompt"])[0].references == ("Hi", "Hello")


# --- plain text ---


@ID_TYPES
def test_blocks_are_cut_from_the_joined_records(tmp_path, kind):
    stream = [3 + i % 50 for i in range(64)]
    write_indexed(tmp_path / "train_0.bin", [stream[i : i + 8] for i in range(0, 40, 8)], kind)
    write_indexed(tmp_path / "train_1.bin", [stream[40:48], stream[48:64]], kind)
    corpus = load_corpus(CorpusConfig(source=str(tmp_path), block_tokens=10, test_blocks=0), TOKENIZER)
    assert corpus.blocks.tolist() == [stream[i : i + 10] for i in range(0, 60, 10)]
    assert corpus.report == {"documents": 7, "blocks": 6, "test_blocks": 0, "tokens_dropped": 4}
    block = corpus.block(2)
    assert block.tokens.dtype == np.int64 and block.tokens.tolist() == stream[20:30] and block.targets == 9


def test_only_the_needed_ids_are_checked_and_a_single_file_stays_on_the_disk(tmp_path):
    stream = [3 + i % 50 for i in range(40)]
    source = str(write_indexed(tmp_path / "train_0.bin", [stream, [60000]]))
    corpus = load_corpus(CorpusConfig(source=source, block_tokens=10, max_blocks=4, test_blocks=0), TOKENIZER)
    assert corpus.blocks.ravel().tolist() == stream and isinstance(corpus.blocks, np.memmap)
    with pytest.raises(InputError, match=r"record 1 has the token id 60000, and the tokenizer has ids below"):
        load_corpus(CorpusConfig(source=source, block_tokens=41, test_blocks=0), TOKENIZER)


def test_a_corpus_with_responses_or_with_too_few_tokens_is_refused(tmp_path):
    source = str(write_indexed(tmp_path / "train_0.bin", [[5, 6, 65535, 7, END]] * 4))
    with pytest.raises(InputError, match="record 0 holds a prompt and a response, and plain text is wanted; give the file as data.train"):
        load_corpus(CorpusConfig(source=source, block_tokens=4, test_blocks=0), TOKENIZER)
    with pytest.raises(InputError, match="has 20 tokens, fewer than one block"):
        load_corpus(CorpusConfig(source=source, block_tokens=24), TOKENIZER)


# --- refused files ---


def damaged(path, *, idx=None, bin=None):
    """Writes a good file, then changes its index or data with a function of the bytes; a function that returns None deletes the file."""
    write_indexed(path, [[5, 6, 65535, 7, END], [8, 65535, 9, END]])
    for file, change in ((path.with_suffix(".idx"), idx), (path, bin)):
        if change:
            content = change(file.read_bytes())
            file.unlink() if content is None else file.write_bytes(content)
    return path


def patched(offset: int, format: str, value):
    return lambda content: content[:offset] + struct.pack(format, value) + content[offset + struct.calcsize(format) :]


REFUSED = {
    "another format": ({"idx": lambda c: b"TNTIDX\0\0" + c}, "train_0.idx is not an index as the reference writes it: it does not begin"),
    "an index too short to be one": ({"idx": lambda c: c[:20]}, "it does not begin with MMIDIDX"),
    "another version": ({"idx": patched(9, "<Q", 2)}, "it has version 2 and type code 8"),
    "another type": ({"idx": patched(17, "<B", 6)}, "it has version 1 and type code 6"),
    "a cut index": ({"idx": lambda c: c[:-5]}, r"train_0.idx has \d+ bytes, not as many as its 2 records need; it is cut off"),
    "an absurd count": ({"idx": patched(18, "<Q", 2**60)}, "not as many as its 1152921504606846976 records need"),
    "offsets that overlap": ({"idx": patched(34 + 8 + 8, "<q", 4)}, "its records do not lie end to end"),
    "a negative size": ({"idx": patched(34, "<i", -5)}, "its records do not lie end to end"),
    "no index": ({"idx": lambda c: None}, "cannot read the index .*train_0.idx, which must stand beside its .bin file: No such file"),
    "no data": ({"bin": lambda c: None}, "cannot read the data file .*train_0.bin: No such file"),
    "cut data": ({"bin": lambda c: c[:-3]}, "train_0.bin has 15 bytes, but its index describes 18"),
    "data of another index": ({"bin": lambda c: c + b"\0\0"}, "train_0.bin has 20 bytes, but its index describes 18"),
    "an id of another tokenizer": (
        {"bin": patched(2, "<H", 60000)},
        "record 0 has the token id 60000, and the tokenizer has ids below .*; the file was written with another tokenizer",
    ),
    "two separators": ({"bin": patched(14, "<H", 65535)}, r"record 1 has 2 separators \(65535\)"),
    "no prompt": ({"bin": patched(0, "<H", 65535)}, "record 0 has 2 separators"),
}


@pytest.mark.parametrize(("damage", "sentence"), REFUSED.values(), ids=REFUSED)
def test_foreign_and_damaged_files_are_refused_in_one_sentence(tmp_path, damage, sentence):
    with pytest.raises(InputError, match=sentence) as refused:
        load(damaged(tmp_path / "train_0.bin", **damage))
    assert "\n" not in str(refused.value)


def test_a_negative_id_is_refused(tmp_path):
    with pytest.raises(InputError, match="record 0 has the token id -3"):
        load(write_indexed(tmp_path / "train_0.bin", [[5, -3, 2**31 - 1, 7, END]], "i"))


def test_sources_without_usable_records_are_refused(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path} is a directory and holds no train_0.bin; it holds no data file at all"):
        load(tmp_path)
    write_split(tmp_path, "valid", ROWS, TOKENIZER)
    with pytest.raises(InputError, match="holds no train_0.bin; name one of its files, valid.jsonl, valid_0.bin"):
        load(tmp_path)
    with pytest.raises(InputError, match="is empty; give one with at least one record"):
        load(write_indexed(tmp_path / "empty.bin", []))
    with pytest.raises(InputError, match="record 0 has an empty prompt"):
        load(write_indexed(tmp_path / "promptless.bin", [[65535, 7, END]]))
    with pytest.raises(InputError, match="none of the responses of .* ends with an end token of the models"):
        load(write_indexed(tmp_path / "endless.bin", [[5, 65535, 7], [5, 6]]))
    with pytest.raises(InputError, match="are tokenised already and take no system prompt"):
        load(tmp_path / "valid_0.bin", system_prompt="Be brief.")


def test_rows_that_do_not_belong_to_the_file_are_refused(tmp_path):
    write_split(tmp_path, "train", ROWS, TOKENIZER)
    with (tmp_path / "train.jsonl").open("a") as rows:
        rows.write(json.dumps(ROWS[0]))
    with pytest.raises(InputError, match="train.jsonl has 4 rows and the .bin files beside it 3 records; they do not belong together"):
        load(tmp_path / "train_0.bin")
