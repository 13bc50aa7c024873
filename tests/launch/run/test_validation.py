"""Validations of an on-policy stage with stand-ins for the groups: what is measured, what is exported, and when a person is warned."""

from types import SimpleNamespace

import numpy as np
import pytest

from launch.config import RunConfig
from launch.prepare import _check_responses
from launch.run.stages import Recipe
from launch.run.validation import OnPolicyValidation
from minirl.config.reader import validate_config
from minirl.errors import InputError
from minirl.training.on_policy_loop import OnPolicyProgress
from minirl.training.roles import SampledRollout
from minirl.types import Prompt, Rollout, RolloutSummary, TokenSequence

PROMPT = np.array([3, 4])


def example(references: tuple[str, ...], gold: list[int]) -> SimpleNamespace:
    tokens = np.array([*PROMPT, *gold])
    return SimpleNamespace(prompt=Prompt(PROMPT, 0, references), sequence=TokenSequence(tokens, np.arange(len(tokens)) >= len(PROMPT)))


class Groups:
    """Every response is two tokens, "yes no", with a reverse KL of 0.5 and 1 nats. Each gold token has a loss of 2 nats.

    The scores of sampled responses are the string "scores", or the rollout itself if it was sampled with scores.
    """

    def sample(self, requests, **options):
        self.with_scores = options.pop("with_scores")
        assert options == {"teacher_share": 0.0, "max_response_tokens": 8, "weight_version": 7}
        rollout = Rollout(PROMPT, np.array([5, 6]), np.zeros(2, np.float32), False, 7, 0, 0)
        return [SampledRollout(rollout, RolloutSummary(2, 2, False, 7)) for _ in requests]

    def fetch(self, sampled):
        return [one.rollout for one in sampled]

    def score(self, inputs, tokens):
        assert tokens == [4] * len(inputs)
        return ["scores"] * len(inputs)

    def diagnostics(self, items, tokens, *, top_k):
        assert all(isinstance(item.scores, Rollout) if self.with_scores else item.scores == "scores" for item in items)
        return [SimpleNamespace(reverse_kl=np.array([0.5, 1.0], np.float32)) for item in items]

    def supervised_sums(self, items):
        targets = sum(item.sequence.targets for item in items)
        return {"supervised": 2.0 * targets, "supervised_tokens": targets}


def measure(examples: list, *, scores_from_sampling: bool = False, **settings) -> dict[str, float]:
    prepared = SimpleNamespace(
        config=SimpleNamespace(seed=1, data=SimpleNamespace(max_response_tokens=8)),
        data=SimpleNamespace(validation=examples),
        tokenizer=SimpleNamespace(batch_decode=lambda responses, **_: ["yes no"] * len(responses)),
    )
    config = SimpleNamespace(**{"validation_prompts": 2, "select_by": "rouge_l"} | settings)
    groups = Groups()
    validation = OnPolicyValidation(prepared, config, (groups, None if scores_from_sampling else groups, groups))
    return validation.measure(weight_version=7)


def test_rouge_l_and_reverse_kl_are_measured_on_the_same_responses():
    examples = [example((), []), example(("yes no",), [5, 6]), example(("yes",), [5]), example(("other",), [7])]
    assert measure(examples) == {"rouge_l": pytest.approx((100 + 200 / 3) / 2), "reverse_kl": 0.75}  # the first two with a reference


def test_without_references_reverse_kl_alone_is_measured():
    for scores_from_sampling in (False, True):
        measured = measure([example((), []), example((), [])], select_by="reverse_kl", scores_from_sampling=scores_from_sampling)
        assert measured == {"reverse_kl": 0.75}


def test_the_validation_loss_is_measured_where_it_selects():
    examples = [example(("yes no",), [5, 6]), example(("yes",), [5])]
    assert measure(examples, select_by="validation_loss").keys() == {"rouge_l", "reverse_kl", "validation_loss"}
    assert measure(examples, select_by="validation_loss")["validation_loss"] == 2.0


def test_a_stage_needs_the_gold_responses_of_the_metric_that_selects():
    data = SimpleNamespace(train=[example(("yes",), [5])], validation=[example((), [])])
    for select_by in ("rouge_l", "validation_loss"):
        with pytest.raises(
            InputError,
            match="no record of the validation data has a response, and stages.distill needs some.*distill.select_by: reverse_kl",
        ):
            _check_responses(run_config(select_by), data)
    _check_responses(run_config("reverse_kl"), data)


def run_config(select_by: str) -> RunConfig:
    stages = {"distill": {"iterations": 1, "learning_rate": 1e-3, "select_by": select_by}}
    model, objective = {"model": "m"}, {"pretrain_coefficient": 0.0}
    settings = {"directory": "d", "teacher": model, "student": model, "data": {"train": "r.jsonl"}, "objective": objective}
    return validate_config(RunConfig, settings | {"stages": stages})


def test_a_blind_metric_exports_by_reverse_kl_and_warns_early_and_at_the_end(tmp_path):
    """Rouge-L is 0 at four validations. The student of the second one is nearest to the teacher."""
    warnings, exported, records = [], [], []
    observer = SimpleNamespace(warn=lambda stage, message: warnings.append((stage, message)))
    recipe = Recipe(SimpleNamespace(config=None, teachers=(), student="start"), observer)
    progress = OnPolicyProgress()
    stage = SimpleNamespace(
        name="distill",
        loop=SimpleNamespace(progress=progress, config=SimpleNamespace(select_by="rouge_l"), finished=False),
        metrics=SimpleNamespace(write=lambda number, values: records.append(values)),
        learner=SimpleNamespace(export=lambda source, directory: exported.append(progress.iteration)),
        doing=lambda activity: None,
        student_directory=lambda which: tmp_path / which,
    )
    warned_at = []
    for iteration, divergence in enumerate([0.9, 0.3, 0.5, 0.4], start=1):
        progress.iteration, stage.loop.finished = iteration, iteration == 4
        metrics = {"rouge_l": 0.0, "reverse_kl": divergence}
        before = len(warnings)
        recipe._validate(stage, SimpleNamespace(measure=lambda version, metrics=metrics: metrics), "start")
        warned_at += [iteration] * (len(warnings) - before)
    assert exported == [1, 2] and progress.best_iteration == 2 and warned_at == [2, 4]
    assert warnings[-1][0] == "distill" and "at all 4 validations" in warnings[-1][1]
    assert records[0] == {"eval/rouge_l": 0.0, "eval/reverse_kl": 0.9}
