"""Words of any script, and that the tokenizers of Rouge-L agree on ASCII text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from minirl.evaluation.text import rouge_l
from minirl.evaluation.words import rouge_tokenizer, words_of

ASCII = st.text(st.characters(max_codepoint=127), max_size=60)
WORDS = ["The", "cats", "weren't", "running;", "3.14", "e-mail", "U.S.A.", "C++", "snake_case", "(studies)!", "a\tb", "'quoted'"]
ENGLISH = st.lists(st.sampled_from(WORDS)).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(st.one_of(ASCII, ENGLISH), st.one_of(ASCII, ENGLISH))
def test_on_ascii_text_both_tokenizers_give_the_score_of_the_package(prediction, reference):
    expected = 100 * RougeScorer(["rougeL"], use_stemmer=True).score(reference, prediction)["rougeL"].fmeasure
    assert rouge_l(prediction, [reference]) == rouge_l(prediction, [reference], "paper") == expected
    assert rouge_tokenizer("any_script").tokenize(reference) == rouge_tokenizer("paper").tokenize(reference)


@settings(max_examples=100, deadline=None)
@given(ASCII)
def test_words_of_ascii_text_are_divided_by_white_space(text):
    assert words_of(text) == text.split()


def test_typographic_english_has_the_words_that_the_paper_counts():
    text = "She said “don’t” — the brand™ costs ½ or 2² … naïvely"
    paper, any_script = (rouge_tokenizer(name).tokenize(text) for name in ("paper", "any_script"))
    assert any_script[:-1] == paper[:-2] and any_script[-1] == "naïvely"


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Привет, мир! Привет-мир", ["привет", "мир", "привет", "мир"]),
        ("iPhone手机，ＡＢＣ１２", ["iphon", "手", "机", "abc12"]),  # stemmed as today; full-width letters are letters
        ("วันนี้", ["วั", "น", "นี้"]),  # vowel signs and tone marks stay with their consonant
        ("ﾗｰﾒﾝ", ["ラ", "ー", "メ", "ン"]),  # half-width forms are the same characters
        ("मौसम", ["मौसम"]),  # marks are part of a word
        ("می\u200cخواهم", ["میخواهم"]),  # a joiner does not divide a word
        ("cafe\u0301 CAFÉ", ["café", "café"]),
        ("Σοφός ΣΟΦΌΣ", ["σοφόσ", "σοφόσ"]),
        ("𠮷野家", ["𠮷", "野", "家"]),  # beyond the basic plane
        ("?! … 👍", []),
    ],
)
def test_tokens_of_any_script(text, tokens):
    assert rouge_tokenizer("any_script").tokenize(text) == tokens


def test_characters_count_as_words_where_a_script_has_no_spaces():
    assert words_of("今天，天气很好。 OK then.") == [*"今天天气很好", "OK", "then."]
    assert words_of("Привет, мир!") == ["Привет,", "мир!"] and len(words_of("བོད་སྐད་")) == 2
