"""Made-up judgements of a plausible shape: for tests of reports and pictures, and to look at the latter by hand."""

import numpy as np

from minirl.evaluation.figures import ModelFigures, figures_of, rouge_scores
from minirl.evaluation.samples import EvaluatedSamples
from minirl.model.token_diagnostics import SequenceDiagnostics
from minirl.types import Rollout

WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "seven", "dogs", "ran", "far", "away", "from", "home", "today", "and", "nobody"]


def references(prompts: int = 40, seed: int = 0) -> list[tuple[str, ...]]:
    draw = np.random.default_rng(seed)
    return [(" ".join(draw.choice(WORDS, draw.integers(2, 18))),) for _ in range(prompts)]


def judged(
    wanted: list[tuple[str, ...]], quality: float, *, seed: int, seeds: int = 3, longest: int = 60, teacher: bool = False
) -> EvaluatedSamples:
    """quality: the share of a reference's words that a response repeats, and the smallness of its divergences."""
    draw = np.random.default_rng(seed)

    def text(reference: str) -> str:
        return " ".join(word if draw.random() < quality else draw.choice(WORDS) for word in reference.split())

    def diagnostics(length: int, drift: float) -> SequenceDiagnostics:
        size = np.zeros(length) if teacher else (1.2 - quality) * draw.exponential(size=length) * (1 + drift * np.arange(length) / longest)
        values = (-draw.exponential(size=length), size, 0.8 * size, draw.uniform(0.1, 1, length), draw.uniform(0.3, 1, length))
        return SequenceDiagnostics(*(value.astype(np.float32) for value in values), correct=draw.random(length) < 0.5)

    def responses(drift: float) -> list[list[SequenceDiagnostics]]:
        lengths = draw.geometric(min(0.5, 2.5 / longest), (seeds, len(wanted))).clip(1, longest)
        return [[diagnostics(int(length), drift) for length in row] for row in lengths]

    own = responses(1.5)
    rollouts = [[_rollout(len(one.correct), longest, draw) for one in row] for row in own]
    texts = [[text(reference) for (reference,) in wanted] for _ in range(seeds)]
    return EvaluatedSamples(texts, rollouts, own, [diagnostics(8, 0.0) for _ in wanted], None if teacher else responses(0.5))


def models(sets: tuple[str, ...] = ("test",), **qualities: float) -> dict[str, dict[str, ModelFigures]]:
    """ModelFigures by model and set; the teacher is the first."""
    found = {"teacher": {}} | {name: {} for name in qualities}
    for number, name in enumerate(sets):
        wanted = references(40 + 20 * number, seed=number)
        for place, (model, quality) in enumerate({"teacher": 0.9, **qualities}.items()):
            one = judged(wanted, quality, seed=100 * number + place, teacher=model == "teacher")
            found[model][name] = figures_of(one, wanted, rouge_scores(one, wanted), top_k=10)
    return found


def _rollout(length: int, longest: int, draw: np.random.Generator) -> Rollout:
    tokens = draw.integers(3, 50, length)
    return Rollout(np.array([7]), tokens, -draw.exponential(size=length).astype(np.float32), length == longest, 1, 0, 0)
