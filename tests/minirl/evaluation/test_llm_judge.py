"""The LLM judge without a server: prompts in both orders, parsing of replies, and the summary of verdicts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minirl.evaluation.llm_judge import LATEST, PROMPT_VERSIONS, Pair, Verdict, judge_pairs, parse_scores, summarise, verdict_of

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
def test_scores_must_be_two_numbers_alone_on_the_first_line(reply, expected):
    assert parse_scores(reply) == expected


def test_every_pair_is_judged_in_both_orders_and_scores_are_stored_as_a_b():
    prompts_seen = []

    def reply_to(prompts):
        prompts_seen.extend(prompts)
        # This judge always prefers GOOD, in either position.
        return ["9 2" if prompt.index("GOOD") < prompt.index("BAD") else "2 9" for prompt in prompts]

    verdicts = judge_pairs([Pair("Q1?", "GOOD", "BAD"), Pair("Q2?", "BAD", "GOOD")], LATEST, reply_to)
    assert verdicts == [Verdict((9, 2), (9, 2)), Verdict((2, 9), (2, 9))]
    assert len(set(prompts_seen)) == 4 and [prompt.count("Q1?") for prompt in prompts_seen] == [1, 1, 0, 0]
    assert prompts_seen[0].index("GOOD") < prompts_seen[0].index("BAD") and prompts_seen[1].index("BAD") < prompts_seen[1].index("GOOD")


def test_braces_in_an_answer_stay_text():
    assert "{second} {0}" in Pair("{question}", "{second} {0}", "b").judge_prompt(LATEST, swapped=False)


@pytest.mark.parametrize("version", PROMPT_VERSIONS)
def test_every_prompt_version_shows_each_text_once_and_names_the_scale(version):
    prompt = Pair("<q>", "<a>", "<b>").judge_prompt(version, swapped=True)
    assert [prompt.count(text) for text in ("<q>", "<a>", "<b>")] == [1, 1, 1] and prompt.index("<b>") < prompt.index("<a>")
    assert "1 to 10" in prompt


def test_summary_of_four_pairs_by_hand():
    summary = summarise(
        [
            Verdict((8, 4), (6, 4)),  # better in both orders: a win
            Verdict((3, 6), (5, 6)),  # worse in both: a loss
            Verdict((7, 5), (4, 8)),  # the first place wins each time: a tie, counted as position bias
            Verdict((5, 5), (5, 5)),
        ]
    )
    assert (summary["wins"], summary["ties"], summary["losses"], summary["win_rate"]) == (1, 2, 1, 0.5)
    assert summary["score_ratio"] == pytest.approx(100 * (14 + 8 + 11 + 10) / (8 + 12 + 13 + 10))
    assert summary["position_bias"] == 0.25
    # Margins of a with a first: 4, -3, 2, 0; with b first: 2, -1, -4, 0. Half of the differences: 1, -1, 3, 0.
    assert summary["first_place_gain"] == pytest.approx((1 - 1 + 3 + 0) / 4)
    assert summary["mean_score_a"] == pytest.approx(43 / 8) and summary["mean_score_b"] == pytest.approx(43 / 8)


def test_pairs_with_unreadable_replies_are_counted_and_left_out_of_the_figures():
    complete = [Verdict((8, 4), (6, 4)), Verdict((3, 6), (5, 6))]
    incomplete = [Verdict((10, 1), None), Verdict(None, (10, 1)), Verdict(None, None)]
    alone, mixed = summarise(complete), summarise([incomplete[0], *complete, *incomplete[1:]])
    assert (mixed["pairs"], mixed["complete_pairs"], mixed["incomplete_pairs"], mixed["unreadable_replies"]) == (5, 2, 3, 4)
    counts = {"pairs", "incomplete_pairs", "unreadable_replies"}
    assert {name: value for name, value in mixed.items() if name not in counts} == {
        name: value for name, value in alone.items() if name not in counts
    }


def test_without_a_readable_reply_there_are_counts_and_no_figures():
    summary = summarise([Verdict(None, None)])
    assert summary["unreadable_replies"] == 2 and summary["wins"] == summary["ties"] == summary["losses"] == 0
    assert all(summary[name] is None for name in ("win_rate", "score_ratio", "score_ratio_low", "position_bias", "mean_score_a"))


@given(st.lists(st.tuples(scores, scores, scores, scores), min_size=1, max_size=8))
def test_exchanging_the_two_models_exchanges_the_figures(rows):
    forward = summarise([Verdict((a, b), (c, d)) for a, b, c, d in rows], resamples=50)
    exchanged = summarise([Verdict((d, c), (b, a)) for a, b, c, d in rows], resamples=50)
    assert (forward["wins"], forward["losses"]) == (exchanged["losses"], exchanged["wins"])
    assert forward["win_rate"] + exchanged["win_rate"] == pytest.approx(1)
    assert forward["score_ratio"] * exchanged["score_ratio"] == pytest.approx(1e4)
    assert forward["position_bias"] == exchanged["position_bias"]
    assert forward["first_place_gain"] == pytest.approx(exchanged["first_place_gain"])


def test_the_interval_contains_the_figure_and_narrows_with_more_pairs():
    draw = np.random.default_rng(0)

    def width(pairs):
        rows = draw.integers(1, 11, (pairs, 4)).astype(float)
        summary = summarise([Verdict((a, b), (c, d)) for a, b, c, d in rows])
        assert summary["score_ratio_low"] < summary["score_ratio"] < summary["score_ratio_high"]
        return summary["score_ratio_high"] - summary["score_ratio_low"]

    assert width(400) < width(25) / 2  # 16 times the pairs narrow it by the root of 16, which is 4


def test_an_unreadable_swapped_reply_gives_none():
    assert verdict_of("8 9", "none") == Verdict((8, 9), None)
