"""Which groups stay up between stages: engines of equal settings serve every student of one architecture, a teacher every stage."""

from types import SimpleNamespace

import pytest

from actors.config import LearnerConfig, RolloutConfig, ScoreCapture, TeacherConfig
from launch.groups import Groups
from tests.tiny import tiny_model

CAPTURE = ScoreCapture(requests=4, response_tokens=8, check_every=8)


@pytest.fixture(scope="module")
def students(tmp_path_factory) -> tuple[str, str, str]:
    """Two of one architecture with other weights, and one that is wider."""
    root = tmp_path_factory.mktemp("students")
    return tuple(tiny_model(root / str(i), "llama", vocab=64, hidden=hidden, seed=i) for i, hidden in enumerate((32, 32, 64)))


def groups(device: str = "cpu") -> Groups:
    config = SimpleNamespace(
        rollout=RolloutConfig(),
        teacher=TeacherConfig(model="teacher"),
        learner=LearnerConfig(),
        cluster=None,
        deterministic=False,
        corpus=None,
    )
    groups = Groups(SimpleNamespace(config=config, max_model_len=32, vocabulary=64, end_tokens=(1,)))
    groups.device = device
    return groups


def rollout_key(student: str, *, device: str = "cpu", **other):
    settings = {"teacher": "teacher", "temperature": 1.0, "no_repeat_ngram": 0, "capture": None} | other
    return groups(device)._rollout_request(student, places=None, **settings).key


def test_engines_serve_every_student_of_one_architecture(students):
    assert rollout_key(students[0]) == rollout_key(students[1]) != rollout_key(students[2])


@pytest.mark.parametrize(
    "other", [{"teacher": None}, {"teacher": "another"}, {"temperature": 0.5}, {"no_repeat_ngram": 6}, {"capture": CAPTURE}]
)
def test_engines_of_other_settings_start_anew(students, other):
    assert rollout_key(students[0], **other) != rollout_key(students[0])


def test_engines_with_room_for_scores_serve_a_stage_without_while_they_run(students):
    run, settings = groups(), {"teacher": "teacher", "temperature": 1.0, "no_repeat_ngram": 0, "places": None}
    with_room = run._rollout_request(students[0], capture=CAPTURE, **settings).key
    run._pool._groups[with_room] = None
    assert run._rollout_request(students[1], capture=None, **settings).key == with_room
    assert run._rollout_request(students[2], capture=None, **settings).key != with_room
    del run._pool._groups[with_room]
    assert run._rollout_request(students[1], capture=None, **settings).key != with_room


def test_a_learner_serves_every_stage():
    assert groups()._learner_request(None).key == groups()._learner_request(None).key


def test_with_nccl_engines_and_learner_serve_one_stage(students):
    assert rollout_key(students[0], device="cuda") != rollout_key(students[0], device="cuda")
    assert groups("cuda")._learner_request(None).key != groups("cuda")._learner_request(None).key


def test_a_teacher_serves_every_stage_of_one_temperature():
    first, again, warmer, tuned = (
        [request.key for request in groups()._teacher_requests((model,), temperature)]
        for model, temperature in (("teacher", 1.0), ("teacher", 1.0), ("teacher", 2.0), ("sft_teacher/best", 1.0))
    )
    assert first == again and first != warmer and first != tuned
