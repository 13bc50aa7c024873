"""The shared vocabulary: padded models share it, and every difference between tokenizers is refused."""

import json

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from minirl.data.vocab import check_ids, shared_vocabulary
from minirl.errors import InputError
from tests.minirl.data.chatml import chatml_tokenizer
from tests.tiny import tiny_tokenizer


def tokenizer_with(**changes):
    """A word-level tokenizer of five words; `changes` rewrite its JSON."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = changes.pop("words", ["<unk>", "<end>", "the", "cat", "sat"])
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    state = json.loads(tokenizer.to_str()) | changes
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), unk_token="<unk>", eos_token="<end>")


@pytest.mark.parametrize(("student", "teacher"), [(400, 400), (448, 512), (512, 448)])
def test_two_padded_sizes_of_one_tokenizer_share_the_smaller(student, teacher):
    assert shared_vocabulary(chatml_tokenizer(), chatml_tokenizer(), student, teacher) == min(student, teacher)


def test_a_saved_and_loaded_tokenizer_is_the_same(tmp_path):
    tokenizer = chatml_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    assert shared_vocabulary(tokenizer, AutoTokenizer.from_pretrained(tmp_path), 512, 512) == 512


def test_another_token_under_an_id_is_refused_with_count_and_example():
    other = tokenizer_with(words=["<unk>", "<end>", "the", "dog", "sat"])
    with pytest.raises(
        InputError, match=r"differ in 2 of 6 tokens, for example 'cat' is 3 in the student's and is missing in the teacher's; .*one family"
    ):
        shared_vocabulary(tokenizer_with(), other, 5, 5)


def test_the_same_words_in_another_order_are_refused():
    other = tokenizer_with(words=["<unk>", "<end>", "cat", "the", "sat"])
    with pytest.raises(InputError, match=r"differ in 2 of 5 tokens, for example 'cat' is 3 in the student's and is 2 in the teacher's"):
        shared_vocabulary(tokenizer_with(), other, 5, 5)


def test_an_added_token_is_refused():
    other = tokenizer_with()
    other.add_tokens(["<think>"], special_tokens=True)
    with pytest.raises(InputError, match=r"differ in 1 of 6 tokens, for example '<think>' is missing in the student's and is 5"):
        shared_vocabulary(tokenizer_with(), other, 8, 8)


def test_another_end_token_is_refused():
    with pytest.raises(InputError, match=r"another eos_token \('<\|endoftext\|>' and '<\|im_end\|>'\)"):
        shared_vocabulary(chatml_tokenizer(), chatml_tokenizer(eos="<|im_end|>"), 400, 400)


def test_tokenizers_that_cut_text_differently_are_refused():
    other = tokenizer_with(pre_tokenizer={"type": "Whitespace"})
    with pytest.raises(
        InputError,
        match=r"the same tokens but cut text differently, for example .The quick .* into 10 and 17 tokens, first apart at token 10",
    ):
        shared_vocabulary(tokenizer_with(), other, 5, 5)


@pytest.mark.parametrize(("student", "teacher", "model"), [(63, 64, "student"), (64, 63, "teacher")])
def test_ids_above_the_smaller_models_vocabulary_are_refused(tmp_path, student, teacher, model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer(tmp_path, 64))
    assert shared_vocabulary(tokenizer, tokenizer, 64, 64) == 64
    with pytest.raises(InputError, match=f"uses ids up to 63, but the {model} has only 63"):
        shared_vocabulary(tokenizer, tokenizer, student, teacher)


def test_an_added_token_beyond_the_models_is_accepted_as_long_as_no_text_holds_it(tmp_path):
    """As Gemma 3's text models: 262,145 tokens in the tokenizer, and 262,144 rows."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer(tmp_path, 64))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    assert shared_vocabulary(tokenizer, tokenizer, 64, 64) == 64
    check_ids(tokenizer.encode("t3 t4"), 64, tokenizer, "line 3")
    with pytest.raises(InputError, match=r"^line 3 contains the token '<image>' \(id 64\), and .* only the ids below 64; remove it"):
        check_ids(tokenizer.encode("t3 <image>"), 64, tokenizer, "line 3")
    with pytest.raises(InputError, match="uses ids up to 64, but the student has only 63"):  # t63 is a word, and texts will hold it
        shared_vocabulary(tokenizer, tokenizer, 63, 63)


@pytest.mark.parametrize("side", [0, 1], ids=["student", "teacher"])
def test_a_padding_token_that_only_one_tokenizer_has_is_no_difference(tmp_path, side):
    tokenizers = [AutoTokenizer.from_pretrained(tiny_tokenizer(tmp_path / str(n), 64)) for n in range(2)]
    tokenizers[side].add_special_tokens({"pad_token": "[PAD]"})
    sizes = [64, 64]
    sizes[side] = 72
    assert shared_vocabulary(*tokenizers, *sizes) == 64
    tokenizers[side].add_special_tokens({"additional_special_tokens": ["<think>"]})
    with pytest.raises(InputError, match="differ in 1 of 66 tokens, for example '<think>'"):
        shared_vocabulary(*tokenizers, *sizes)


def test_a_padding_token_under_the_id_of_another_token_is_refused():
    padded, other = tokenizer_with(), tokenizer_with()
    padded.add_special_tokens({"pad_token": "[PAD]"})
    other.add_tokens(["<tool>"])
    with pytest.raises(InputError, match="differ in 2 of 7 tokens"):
        shared_vocabulary(padded, other, 8, 8)
