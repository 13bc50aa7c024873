import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minirl.evaluation.llm_judge import LATEST, PROMPT_VERSIONS, Pair, Verdict, judge_all, read_scores, summarise, verdict_of

scores = st.integers(1, 10).map(float)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("8 9\nThe second is better.", (8, 9)),
        ("\n  7.5, 10 \n", (7.5, 10)),
        ("**8 9**", (8, 9)),
        ("8/10 3/10\nbecause", (8, 3)),
        ("<think>maybe 3 4, or\n5 6</think>\n\n1 2", (1, 2)),
        ("", None),
        ("8", None),
        ("8 9 7", None),
        ("0 5", None),
        ("11 5", None),
        ("Assistant 1 gets 8 and assistant 2 gets 9.", None),
        ("Both are good.\n8 9", None),
    ],
)
def test_scores_are_two_numbers_alone_on_the_first_line_or_nothing(reply, expected):
    assert read_scores(reply) == expected


def test_both_orders_are_asked_and_turned_back():
    asked = []

    def reply_to(prompts):
        asked.extend(prompts)
        # A judge who knows the good answer, wherever it stands.
        return ["9 2" if prompt.index("GOOD") < prompt.index("BAD") else "2 9" for prompt in prompts]

    verdicts = judge_all([Pair("Q1?", "GOOD", "BAD"), Pair("Q2?", "BAD", "GOOD")], LATEST, reply_to)
    assert verdicts == [Verdict((9, 2), (9, 2)), Verdict((2, 9), (2, 9))]
    assert len(set(asked)) == 4 and [prompt.count("Q1?") for prompt in asked] == [1, 1, 0, 0]
    assert asked[0].index("GOOD") < asked[0].index("BAD") and asked[1].index("BAD") < asked[1].index("GOOD")


def test_braces_in_an_answer_are_only_text():
    assert "{second} {0}" in Pair("{question}", "{second} {0}", "b").ask(LATEST, swapped=False)


@pytest.mark.parametrize("version", PROMPT_VERSIONS)
def test_a_version_shows_each_text_once_and_names_the_scale(version):
    prompt = Pair("<q>", "<a>", "<b>").ask(version, swapped=True)
    assert [prompt.count(text) for text in ("<q>", "<a>", "<b>")] == [1, 1, 1] and prompt.index("<b>") < prompt.index("<a>")
    assert "1 to 10" in prompt


def test_what_four_pairs_add_up_to_by_hand():
    found = summarise(
        [
            Verdict((8, 4), (6, 4)),  # better in both orders: a win
            Verdict((3, 6), (5, 6)),  # worse in both: a loss
            Verdict((7, 5), (4, 8)),  # the first place wins each time: a tie, and a sign of bias
            Verdict((5, 5), (5, 5)),
        ]
    )
    assert (found["wins"], found["ties"], found["losses"], found["win_rate"]) == (1, 2, 1, 0.5)
    assert found["score_ratio"] == pytest.approx(100 * (14 + 8 + 11 + 10) / (8 + 12 + 13 + 10))
    assert found["position_bias"] == 0.25
    # Margins with a first: 4, -3, 2, 0; with b first, a's margin: 2, -1, -4, 0. Half of what the place moves: 1, -1, 3, 0.
    assert found["first_place_gain"] == pytest.approx((1 - 1 + 3 + 0) / 4)
    assert found["mean_score_a"] == pytest.approx(43 / 8) and found["mean_score_b"] == pytest.approx(43 / 8)


def test_unreadable_replies_are_counted_and_their_pairs_left_out_of_the_rest():
    whole = [Verdict((8, 4), (6, 4)), Verdict((3, 6), (5, 6))]
    broken = [Verdict((10, 1), None), Verdict(None, (10, 1)), Verdict(None, None)]
    alone, mixed = summarise(whole), summarise([broken[0], *whole, *broken[1:]])
    assert (mixed["pairs"], mixed["complete_pairs"], mixed["incomplete_pairs"], mixed["unreadable_replies"]) == (5, 2, 3, 4)
    counts = {"pairs", "incomplete_pairs", "unreadable_replies"}
    assert {name: value for name, value in mixed.items() if name not in counts} == {
        name: value for name, value in alone.items() if name not in counts
    }


def test_nothing_readable_gives_counts_and_no_figure():
    found = summarise([Verdict(None, None)])
    assert found["unreadable_replies"] == 2 and found["wins"] == found["ties"] == found["losses"] == 0
    assert all(found[name] is None for name in ("win_rate", "score_ratio", "score_ratio_low", "position_bias", "mean_score_a"))


@given(st.lists(st.tuples(scores, scores, scores, scores), min_size=1, max_size=8))
def test_exchanging_the_two_models_exchanges_the_figures(rows):
    forward = summarise([Verdict((a, b), (c, d)) for a, b, c, d in rows], resamples=50)
    exchanged = summarise([Verdict((d, c), (b, a)) for a, b, c, d in rows], resamples=50)
    assert (forward["wins"], forward["losses"]) == (exchanged["losses"], exchanged["wins"])
    assert forward["win_rate"] + exchanged["win_rate"] == pytest.approx(1)
    assert forward["score_ratio"] * exchanged["score_ratio"] == pytest.approx(1e4)
    assert forward["position_bias"] == exchanged["position_bias"]
    assert forward["first_place_gain"] == pytest.approx(exchanged["first_place_gain"])


def test_the_interval_holds_the_figure_and_narrows_with_more_pairs():
    draw = np.random.default_rng(0)

    def width(pairs):
        rows = draw.integers(1, 11, (pairs, 4)).astype(float)
        found = summarise([Verdict((a, b), (c, d)) for a, b, c, d in rows])
        assert found["score_ratio_low"] < found["score_ratio"] < found["score_ratio_high"]
        return found["score_ratio_high"] - found["score_ratio_low"]

    assert width(400) < width(25) / 2  # a root of 16 is 4


def test_an_unreadable_swapped_reply_is_not_turned_around():
    assert verdict_of("8 9", "none") == Verdict((8, 9), None)
