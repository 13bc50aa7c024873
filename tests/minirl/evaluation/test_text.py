import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from minirl.errors import InputError
from minirl.evaluation.text import (
    bootstrap_means,
    distinct_n,
    distinct_ngrams,
    estimate,
    mean_and_standard_error,
    repetition,
    rouge_l,
)

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
    """Bigrams: a b, b a, a b | a b: four, two of them distinct; each text alone would give 2/3 and 1."""
    assert distinct_n(["a b a b", "a b"], 2) == 0.5


def test_distinct_n_splits_on_white_space_only():
    """`b.` and `b` are two words; the line break parts like a blank: a b. | b. a | a b."""
    assert distinct_n(["a b.\na b"], 2) == 1.0
    assert distinct_n(["a b.\na b"], 1) == 0.75


def test_distinct_n_does_not_cross_texts():
    assert distinct_n(["a b", "c d", "a b"], 4) == 0.0
    assert distinct_n(["a b c d", "e"], 4) == 1.0
    assert distinct_n([], 4) == 0.0


def test_distinct_n_of_tokens():
    """Bigrams of ids: (1, 2), (2, 1), (1, 2) | (2, 1): two of four."""
    assert distinct_ngrams([[1, 2, 1, 2], np.array([2, 1])], 2) == 0.5


def test_repetition_by_hand():
    """2-grams of a b a b: ab, ba, ab: one of three came before; a row of one token repeats nothing; x x x: one of two."""
    assert repetition([list("abab"), list("x"), list("xxx")], 2) == pytest.approx((1 / 3 + 0 + 1 / 2) / 3)
    assert repetition([[7, 7, 7]]) == 0.0


def test_mean_and_standard_error_by_hand():
    """1, 2, 6: mean 3, squared deviations 4 + 1 + 9 = 14, variance 7, standard error sqrt(7/3)."""
    assert mean_and_standard_error([1.0, 2.0, 6.0]) == pytest.approx((3.0, (7 / 3) ** 0.5))
    assert mean_and_standard_error([4.0]) == (4.0, None)


def test_bootstrap_means_of_two_prompts():
    """Draws from {0, 1} with replacement have means 0, 1/2, 1 with probability 1/4, 1/2, 1/4."""
    means = bootstrap_means(np.array([0.0, 1.0]), resamples=20_000, seed=1)
    values, counts = np.unique(means, return_counts=True)
    assert values.tolist() == [0.0, 0.5, 1.0]
    assert counts / 20_000 == pytest.approx([0.25, 0.5, 0.25], abs=0.015)


def test_bootstrap_standard_error_is_that_of_a_mean():
    """The bootstrap's standard error tends to the population's deviation over the root of n."""
    scores = np.random.default_rng(0).normal(size=400)
    means = bootstrap_means(scores, resamples=4000, seed=0)
    assert means.std() == pytest.approx(scores.std() / 20, rel=0.05)


def test_estimate_tells_seeds_from_prompts():
    """Prompts differ, seeds don't: no spread over seeds, some over prompts. And the other way round."""
    by_prompt, by_seed = np.array([[0.0, 10.0], [0.0, 10.0]]), np.array([[4.0, 4.0], [6.0, 6.0]])
    prompts, seeds = estimate(by_prompt), estimate(by_seed)
    assert (prompts.mean, prompts.seed_standard_error, prompts.low, prompts.high) == (5.0, 0.0, 0.0, 10.0)
    assert prompts.prompt_standard_error == pytest.approx(50**0.5 / 2, rel=0.05)
    assert (seeds.mean, seeds.prompt_standard_error, seeds.low, seeds.high) == (5.0, 0.0, 5.0, 5.0)
    assert seeds.seed_standard_error == pytest.approx(1.0)


def test_estimate_repeats():
    scores = np.random.default_rng(3).random((3, 50))
    assert estimate(scores) == estimate(scores)
    assert estimate(scores) != estimate(scores, seed=1)


def test_the_estimate_of_a_difference_cancels_hard_prompts():
    """A constant gain over prompts of very different difficulty is certain, though the mean itself is not."""
    baseline = np.array([[0.0, 50.0, 100.0], [10.0, 40.0, 90.0]])
    gain = estimate((baseline + 2.0) - baseline)
    assert gain.mean == pytest.approx(2.0)
    assert gain.prompt_standard_error < 1e-9 < estimate(baseline).prompt_standard_error
