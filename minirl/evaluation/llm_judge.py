"""The LLM judge without the network: versioned prompts, parsing of replies, and the summary of verdicts.

As in MiniLLM's GPT-4 feedback, the judge scores two answers to one question from 1 to 10, and a model's figure is the sum of its scores
over the sum of the other's. The authors never published their prompt; the wording here follows the one of Vicuna's evaluation (Chiang et
al. 2023), which fits their description. The judge sees each pair in both orders, because judges favour one position (Zheng et al. 2023,
section 3.3).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from minirl.evaluation.intervals import RESAMPLES, bootstrap_counts

# Never change the words of a version: stored verdicts and published figures name it. Add a version for another wording.
PROMPT_VERSIONS = {
    "scores-1": (
        "[Question]\n{question}\n\n[The start of assistant 1's answer]\n{first}\n[The end of assistant 1's answer]\n\n"
        "[The start of assistant 2's answer]\n{second}\n[The end of assistant 2's answer]\n\n"
        "Please rate the helpfulness, relevance, accuracy and level of detail of the two answers to the question above. Each assistant "
        "receives an overall score on a scale of 1 to 10, where a higher score means better overall performance.\n"
        "First output a single line with only two numbers, the scores of assistant 1 and assistant 2, separated by a space. Then explain "
        "your evaluation on the following lines. Avoid any bias, and do not let the order of the answers affect your judgment."
    ),
}
LATEST = "scores-1"
_SCORES = re.compile(r"\W*(\d+(?:\.\d+)?)(?:/10)?[\s,;:|]+(\d+(?:\.\d+)?)(?:/10)?\W*")

ScorePair = tuple[float, float]


@dataclass(frozen=True)
class Pair:
    """One question and two answers: `a` is the judged model's, `b` is the answer it is compared with."""

    question: str
    a: str
    b: str

    def judge_prompt(self, version: str, *, swapped: bool) -> str:
        """The prompt for the judge, with `a` first, or with `b` first if `swapped`."""
        first, second = (self.b, self.a) if swapped else (self.a, self.b)
        return PROMPT_VERSIONS[version].format(question=self.question, first=first, second=second)


@dataclass(frozen=True)
class Verdict:
    """The scores of a pair, both as (a, b). plain: for the prompt with `a` first; swapped: with `b` first; None: an unreadable reply."""

    plain: ScorePair | None
    swapped: ScorePair | None

    @property
    def complete(self) -> bool:
        return self.plain is not None and self.swapped is not None


def parse_scores(reply: str) -> ScorePair | None:
    """The two scores at the start of a reply, in the reply's order; None unless the first line is just two numbers from 1 to 10.

    Skips the thoughts of a reasoning model before `</think>`. Never guesses: text that merely contains numbers is unreadable.
    """
    lines = reply.rpartition("</think>")[2].strip().splitlines()
    match = _SCORES.fullmatch(lines[0]) if lines else None
    scores = (float(match[1]), float(match[2])) if match else (0.0, 0.0)
    return scores if all(1 <= score <= 10 for score in scores) else None


def verdict_of(plain_reply: str, swapped_reply: str) -> Verdict:
    """From both replies to a pair; the scores of the second are exchanged, so that `a` comes first."""
    swapped = parse_scores(swapped_reply)
    return Verdict(parse_scores(plain_reply), swapped and (swapped[1], swapped[0]))


def summarise(verdicts: Sequence[Verdict], *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, float | int | None]:
    """Figures of all verdicts. Apart from the counts they use only complete pairs, and are None where there is none.

    wins, ties, losses: a win is a higher score of `a` in both orders, a loss a lower one in both, all else a tie (Zheng et al. 2023).
    win_rate: wins and half of the ties over complete pairs. score_ratio: percent, sum of a's scores over sum of b's, both orders.
    `_low` and `_high`: 95 % by bootstrap over pairs. position_bias: share of pairs where the orders disagree about which answer is better.
    first_place_gain: by how many points the answer in first place scores higher; 0 for a judge that ignores the order.
    unreadable_replies: out of 2 for each pair. incomplete_pairs: pairs with at least one unreadable reply; only these counts include them.
    """
    complete = [verdict for verdict in verdicts if verdict.complete]
    counts = {
        "pairs": len(verdicts),
        "complete_pairs": len(complete),
        "incomplete_pairs": len(verdicts) - len(complete),
        "unreadable_replies": sum((verdict.plain is None) + (verdict.swapped is None) for verdict in verdicts),
    }
    scores = np.array([(verdict.plain, verdict.swapped) for verdict in complete], np.float64).reshape(-1, 2, 2)  # [pairs, orders, a and b]
    margins = scores[..., 0] - scores[..., 1]
    preferred = np.sign(margins)
    outcome = np.where(preferred[:, 0] == preferred[:, 1], preferred[:, 0], 0)
    draws = bootstrap_counts(len(complete), resamples, seed) if complete else np.zeros((0, 0))
    return {
        **counts,
        **{name: int((outcome == value).sum()) for name, value in (("wins", 1), ("ties", 0), ("losses", -1))},
        **_ratio_with_interval("win_rate", (1 + outcome) / 2, np.ones(len(complete)), draws),
        **_ratio_with_interval("score_ratio", 100 * scores[..., 0].sum(1), scores[..., 1].sum(1), draws),
        "mean_score_a": _mean(scores[..., 0]),
        "mean_score_b": _mean(scores[..., 1]),
        "position_bias": _mean(preferred[:, 0] != preferred[:, 1]),
        "first_place_gain": _mean((margins[:, 0] - margins[:, 1]) / 2),
    }


def _ratio_with_interval(name: str, numerators: np.ndarray, denominators: np.ndarray, draws: np.ndarray) -> dict[str, float | None]:
    """Sum over sum, for all pairs and its 95 % over the draws. numerators, denominators: [pairs]; draws: [draws, pairs]."""
    if not len(numerators):
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    low, high = np.quantile((draws @ numerators) / (draws @ denominators), [0.025, 0.975])
    return {name: float(numerators.sum() / denominators.sum()), f"{name}_low": float(low), f"{name}_high": float(high)}


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def judge_pairs(pairs: Sequence[Pair], version: str, reply_to: Callable[[Sequence[str]], Sequence[str]]) -> list[Verdict]:
    """Judge every pair in both orders. reply_to: maps prompts to replies, one for each prompt, in the same order."""
    prompts = [pair.judge_prompt(version, swapped=swapped) for pair in pairs for swapped in (False, True)]
    replies = reply_to(prompts)
    return [verdict_of(plain, swapped) for plain, swapped in zip(replies[::2], replies[1::2], strict=True)]
