"""Rouge-L, Dist-n and repetition against hand-computed values and the package `rouge-score`."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from minirl.errors import InputError
from minirl.evaluation.text import distinct_n, distinct_ngrams, repetition, rouge_l

words = st.lists(st.sampled_from(["cat", "cats", "sat", "mat", "the", "on", "running"]), max_size=8).map(" ".join)


def test_rouge_l_by_hand():
    """Longest common subsequence "the cat on the mat", 5 words of 6 and 5 of 5: F = 2 * (5/6) / (1 + 5/6) = 10/11."""
    assert rouge_l("the cat sat on the mat", ["the cat on the mat"]) == pytest.approx(100 * 10 / 11)


def test_rouge_l_follows_order_not_only_words():
    """ "a b c" against "c b a": the subsequence is one word long, F = 1/3."""
    assert rouge_l("alpha beta gamma", ["gamma beta alpha"]) == pytest.approx(100 / 3)


def test_rouge_l_stems():
    assert rouge_l("the dogs barked", ["the dog barking"]) == pytest.approx(100.0)


def test_rouge_l_takes_the_best_reference():
    references = ["nothing alike", "the cat on the mat", "the"]
    assert rouge_l("the cat sat on the mat", references) == pytest.approx(100 * 10 / 11)


@pytest.mark.parametrize("prediction", ["", " \n", "?!"])
def test_an_empty_prediction_scores_nothing(prediction):
    assert rouge_l(prediction, ["the cat"]) == 0.0


@pytest.mark.parametrize(
    ("answer", "half"),
    {
        "Chinese": ("今天天气", "今天"),
        "Japanese": ("らーめん", "らー"),
        "Thai": ("กขคง", "กข"),
        "Lao": ("ກຂຄງ", "ກຂ"),
        "Khmer": ("កខគឃ", "កខ"),
        "Burmese": ("ကခဂဃ", "ကခ"),
        "Russian": ("сегодня очень хорошая погода", "сегодня очень"),
        "Greek": ("ο καιρός είναι καλός", "ο καιρός"),
        "Hindi": ("आज मौसम अच्छा है", "आज मौसम"),
        "Arabic": ("الطقس جميل اليوم جدا", "الطقس جميل"),
        "Korean": ("오늘 날씨가 정말 좋다", "오늘 날씨가"),
        "Tibetan": ("བོད་སྐད་ཡིག་གེ", "བོད་སྐད"),
    }.values(),
)
def test_rouge_l_scores_any_script(answer, half):
    """Half of the four words or characters: precision 1, recall 1/2, F = 2/3. The paper's tokenizer sees nothing of them."""
    assert rouge_l(answer, [answer]) == pytest.approx(100) and rouge_l(half, [answer]) == pytest.approx(200 / 3)
    assert rouge_l(answer, [answer], "paper") == 0.0


def test_rouge_l_without_reference_is_refused():
    with pytest.raises(InputError, match="at least one reference"):
        rouge_l("a", [])


@settings(max_examples=30, deadline=None)
@given(words, st.lists(words, min_size=1, max_size=4))
def test_rouge_l_is_the_packages_score_of_the_best_single_reference(prediction, references):
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    best = max(scorer.score(reference, prediction)["rougeL"].fmeasure for reference in references)
    assert rouge_l(prediction, references) == pytest.approx(100 * best)


def test_distinct_n_pools_over_the_set():
    """Bigrams: a b, b a, a b | a b: four, two of them distinct. The texts alone would give 2/3 and 1."""
    assert distinct_n(["a b a b", "a b"], 2) == 0.5


def test_distinct_n_splits_on_white_space_only():
    """`b.` and `b` are two words; a line break separates words like a blank: a b. | b. a | a b."""
    assert distinct_n(["a b.\na b"], 2) == 1.0
    assert distinct_n(["a b.\na b"], 1) == 0.75


def test_distinct_n_counts_characters_where_a_script_has_no_spaces():
    """Four characters and a full stop that is none: bigrams ab, bc, cd | ab: four, three of them distinct."""
    assert distinct_n(["今天天气。", "今天"], 1) == pytest.approx(3 / 6)
    assert distinct_n(["甲乙丙丁。", "甲乙"], 2) == 0.75


def test_ngrams_do_not_cross_texts():
    assert distinct_n(["a b", "c d", "a b"], 4) == 0.0
    assert distinct_n(["a b c d", "e"], 4) == 1.0
    assert distinct_n([], 4) == 0.0


def test_distinct_n_of_tokens():
    """Bigrams of ids: (1, 2), (2, 1), (1, 2) | (2, 1): two of four."""
    assert distinct_ngrams([[1, 2, 1, 2], np.array([2, 1])], 2) == 0.5


def test_repetition_by_hand():
    """2-grams of a b a b: ab, ba, ab: one of three occurred before; a row of one token has none; x x x: one of two."""
    assert repetition([list("abab"), list("x"), list("xxx")], 2) == pytest.approx((1 / 3 + 0 + 1 / 2) / 3)
    assert repetition([[7, 7, 7]]) == 0.0
