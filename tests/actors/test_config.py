"""Tests of the teacher settings, for one teacher and for an ensemble."""

import pytest

from actors.config import TeacherConfig
from minirl.config.reader import validate_config
from minirl.errors import InputError


def test_a_single_model_is_an_ensemble_of_one():
    config = validate_config(TeacherConfig, {"model": "a"})
    assert [(m.model, m.weight, m.id) for m in config.members] == [("a", 1.0, None)]
    assert not config.selected_by_record


def test_several_teachers_have_weights_or_ids():
    averaged = validate_config(TeacherConfig, {"ensemble": [{"model": "a"}, {"model": "b", "weight": 3.0}]})
    assert [(m.model, m.weight) for m in averaged.members] == [("a", 1.0), ("b", 3.0)] and not averaged.selected_by_record
    selected = validate_config(TeacherConfig, {"ensemble": [{"model": "a", "id": "x"}, {"model": "b", "id": "y"}]})
    assert [m.id for m in selected.members] == ["x", "y"] and selected.selected_by_record
    for config in (averaged, selected):
        assert validate_config(TeacherConfig, config.model_dump()) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "either a model or an ensemble"),
        ({"model": "a", "ensemble": [{"model": "b"}, {"model": "c"}]}, "either a model or an ensemble"),
        ({"ensemble": []}, "at least two teachers"),
        ({"ensemble": [{"model": "a"}]}, "at least two teachers"),
        ({"ensemble": [{"model": "a", "id": "x"}, {"model": "b"}]}, "every teacher of the ensemble an id"),
        ({"ensemble": [{"model": "a", "id": "x"}, {"model": "b", "id": "x"}]}, "the id x names two teachers"),
        ({"ensemble": [{"model": "a", "id": "x", "weight": 2.0}, {"model": "b", "id": "y"}]}, "its weight would do nothing"),
        ({"ensemble": [{"model": "a"}, {"model": "b"}, {"model": "a"}]}, "a is in the ensemble twice"),
        ({"ensemble": [{"model": "a"}, {"model": "b", "weight": 0.0}]}, "ensemble.1.weight"),
        ({"ensemble": [{"model": "a"}, {"modle": "b"}]}, "did you mean model"),
    ],
)
def test_an_ensemble_that_contradicts_itself_is_refused(values, message):
    with pytest.raises(InputError, match=message) as error:
        validate_config(TeacherConfig, values)
    assert "\n" not in str(error.value)
