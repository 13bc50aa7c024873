"""Tokenizers that put a space before every text: in the middle of a conversation they must not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from minirl.data.continuation import Continuation
from minirl.data.conversation import Conversation, Message
from minirl.data.templates import end_tokens, make_template
from tests.minirl.data.chatml import TEMPLATE, chatml_tokenizer

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def spaced_tokenizer(kind: str, template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    """In the style of SentencePiece. kind: `first` and `always` as Metaspace puts spaces, `normalizer` as older conversions do."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    if kind == "normalizer":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
    alphabet = list("abcdefghijklmnopqrstuvwxyz#:\n▁")
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["the sky is blue yes it is\n\n"] * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|im_end|>", extra_special_tokens=SPECIAL[3:4], chat_template=template
    )


@pytest.mark.parametrize("kind", ["first", "always", "normalizer"])
@pytest.mark.parametrize("template", ["chat", "alpaca"])
def test_an_answer_after_a_line_break_begins_without_a_space(kind, template):
    tokenizer = spaced_tokenizer(kind)
    turns = (Message("user", "is it"), Message("assistant", "yes"), Message("user", "why"), Message("assistant", "it is blue"))
    segments = make_template(template, tokenizer, end_tokens(tokenizer))(Conversation(turns))
    learnt = [tokenizer.convert_ids_to_tokens(segment.tokens[: segment.gold]) for segment in segments[1::2]]
    whole = tokenizer.convert_ids_to_tokens(tokenizer.encode("x\nyes<|im_end|>x\nit is blue<|im_end|>", add_special_tokens=False))
    assert learnt[0] == whole[whole.index("\n") + 1 : whole.index("<|im_end|>") + 1] and not learnt[0][0].startswith("▁")
    assert "".join(learnt[1]).replace("▁", " ") == "it is blue<|im_end|>"


@pytest.mark.parametrize("kind", ["first", "always", "normalizer"])
def test_segments_join_to_the_tokens_of_the_whole_conversation(kind):
    tokenizer = spaced_tokenizer(kind)
    turns = (Message("user", "is it"), Message("assistant", "yes"), Message("user", "why"), Message("assistant", "it is blue"))
    segments = make_template("chat", tokenizer, end_tokens(tokenizer))(Conversation(turns))
    whole = tokenizer.apply_chat_template([m.as_dict() for m in turns], return_dict=False)
    assert [token for segment in segments for token in segment.tokens] == whole


texts = st.text("ab \n", max_size=5)


@given(texts, texts, st.sampled_from(["first", "always", "normalizer"]))
def test_offsets_belong_to_the_tokens(text, before, kind):
    continuation = Continuation(TOKENIZERS[kind])
    tokens, offsets = continuation.encode(text, before), continuation.offsets(text, before)
    assert len(tokens) == len(offsets) and all(0 <= start <= end <= len(text) for start, end in offsets)


@given(texts, texts)
def test_other_tokenizers_see_the_text_alone(text, before):
    tokenizer = TOKENIZERS["byte level"]
    assert Continuation(tokenizer).encode(text, before) == tokenizer.encode(text, add_special_tokens=False)


TOKENIZERS = {kind: spaced_tokenizer(kind) for kind in ("first", "always", "normalizer")} | {"byte level": chatml_tokenizer()}
