"""Values that single config sections refuse."""

import re

import pytest

from minirl.config.data import DataConfig
from minirl.config.evaluation import EvaluateConfig
from minirl.config.objective import ObjectiveConfig
from minirl.config.reader import validate_config
from minirl.config.stages import DistillConfig, SftConfig
from minirl.config.student import StudentConfig
from minirl.errors import InputError


@pytest.mark.parametrize(("prompts", "samples", "updates", "fits"), [(8, 1, 4, True), (6, 2, 4, True), (9, 1, 2, False), (2, 1, 4, False)])
def test_responses_of_an_iteration_divide_into_its_updates(prompts, samples, updates, fits):
    values = {"iterations": 1, "learning_rate": 1e-3, "updates_per_epoch": updates}
    values |= {"prompts_per_iteration": prompts, "samples_per_prompt": samples}
    if fits:
        config = validate_config(DistillConfig, values | {"epochs_per_iteration": 3})
        assert (config.responses_per_iteration, config.updates_per_iteration) == (prompts * samples, 3 * updates)
    else:
        with pytest.raises(InputError, match=f"^{prompts * samples} responses per iteration do not divide into {updates} updates"):
            validate_config(DistillConfig, values)


@pytest.mark.parametrize("values", [{}, {"model": "somewhere", "layers": [0, 1]}])
def test_the_student_has_either_a_model_or_layers(values):
    with pytest.raises(InputError, match="either a model or the layers"):
        validate_config(StudentConfig, values)


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (SftConfig, {"learning_rate": 0.0}),
        (SftConfig, {"learning_rate": 1e-3, "betas": [0.9]}),
        (SftConfig, {"learning_rate": 1e-3, "epochs": 0}),
        (DistillConfig, {"learning_rate": 1e-3, "iterations": 0}),
        (DataConfig, {"train": "x.jsonl", "validation_share": 0.5}),
        (DataConfig, {"train": "x.jsonl", "overlong_prompts": "warn"}),
        (ObjectiveConfig, {"preset": "papers"}),
        (ObjectiveConfig, {"pretrain_kd_share": 1.5}),
    ],
)
def test_values_outside_their_range_are_refused(model, values):
    with pytest.raises(InputError, match="does not fit"):
        validate_config(model, values)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"sets": {"a b": {}}}, "use letters, digits, - and _ alone"),
        ({"seeds": [1, 2, 1]}, "has a seed twice"),
        ({"no_repeat_ngram": 6, "exposure_bias": True}, "set one of them"),
        ({"sets": {"dolly": {"sorce": "x.jsonl"}}}, "sets.dolly.sorce is not a known key; did you mean source?"),
    ],
)
def test_contradictions_of_an_evaluation_are_refused(values, sentence):
    with pytest.raises(InputError, match=re.escape(sentence)):
        validate_config(EvaluateConfig, values)
