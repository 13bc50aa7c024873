"""Random evaluated samples of plausible shape, for tests of reports and plots and for viewing plots by hand."""

import numpy as np

from minirl.evaluation.agreement import GreedyAnswers, agreement
from minirl.evaluation.figures import ModelFigures, figures_of, rouge_scores
from minirl.evaluation.samples import EvaluatedSamples
from minirl.model.token_diagnostics import SequenceDiagnostics
from minirl.types import Rollout

WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "seven", "dogs", "ran", "far", "away", "from", "home", "today", "and", "nobody"]


def references(prompts: int = 40, seed: int = 0) -> list[tuple[str, ...]]:
    draw = np.random.default_rng(seed)
    return [(" ".join(draw.choice(WORDS, draw.integers(2, 18))),) for _ in range(prompts)]


def random_samples(
    gold: list[tuple[str, ...]], quality: float, *, seed: int, seeds: int = 3, longest: int = 60, teacher: bool = False
) -> EvaluatedSamples:
    """quality: the share of a reference's words that a response repeats; higher quality also means smaller divergences."""
    draw = np.random.default_rng(seed)

    def text(reference: str) -> str:
        return " ".join(word if draw.random() < quality else draw.choice(WORDS) for word in reference.split())

    def diagnostics(length: int, drift: float) -> SequenceDiagnostics:
        size = np.zeros(length) if teacher else (1.2 - quality) * draw.exponential(size=length) * (1 + drift * np.arange(length) / longest)
        values = (-draw.exponential(size=length), size, 0.8 * size, draw.uniform(0.1, 1, length), draw.uniform(0.3, 1, length))
        return SequenceDiagnostics(*(value.astype(np.float32) for value in values), correct=draw.random(length) < 0.5)

    def responses(drift: float) -> list[list[SequenceDiagnostics]]:
        lengths = draw.geometric(min(0.5, 2.5 / longest), (seeds, len(gold))).clip(1, longest)
        return [[diagnostics(int(length), drift) for length in row] for row in lengths]

    on_model_samples = responses(1.5)
    rollouts = [[_rollout(len(diagnosed.correct), longest, draw) for diagnosed in row] for row in on_model_samples]
    texts = [[text(reference) for (reference,) in gold] for _ in range(seeds)]
    return EvaluatedSamples(texts, rollouts, on_model_samples, [diagnostics(8, 0.0) for _ in gold], None if teacher else responses(0.5))


def random_answers(samples: EvaluatedSamples) -> GreedyAnswers:
    """The first seed's responses, as if they were greedy."""
    return GreedyAnswers([rollout.response_tokens for rollout in samples.rollouts[0]], samples.texts[0])


def models(sets: tuple[str, ...] = ("test",), **qualities: float) -> dict[str, dict[str, ModelFigures]]:
    """Figures by model and set; the teacher comes first."""
    figures, teachers_answers = {"teacher": {}} | {name: {} for name in qualities}, None
    for set_index, name in enumerate(sets):
        gold = references(40 + 20 * set_index, seed=set_index)
        for model_index, (model, quality) in enumerate({"teacher": 0.9, **qualities}.items()):
            samples = random_samples(gold, quality, seed=100 * set_index + model_index, teacher=model == "teacher")
            answers = random_answers(samples)
            if model == "teacher":
                teachers_answers = answers
            alike = agreement(answers, teachers_answers)
            figures[model][name] = figures_of(samples, gold, rouge_scores(samples, gold), top_k=10, teacher_agreement=alike)
    return figures


def _rollout(length: int, longest: int, draw: np.random.Generator) -> Rollout:
    tokens = draw.integers(3, 50, length)
    return Rollout(np.array([7]), tokens, -draw.exponential(size=length).astype(np.float32), length == longest, 1, 0, 0)
