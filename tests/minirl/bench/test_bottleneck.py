"""The sentence about the bottleneck, in each situation of a run."""

import pytest

from minirl.bench.bottleneck import bottleneck
from minirl.bench.efficiency import Limit, Work
from tests.minirl.bench.measurements import measurements, record

SEPARATE = {"sharing": [["rollout"], ["teacher"], ["learner"]]}
SLOW_TEACHER = measurements().alone | {"teacher": Work(4.0, 600, 3e11)}
TWO_ROLES = {role: work for role, work in measurements().alone.items() if role != "teacher"}
SLOW_ROLLOUT = measurements().alone | {"rollout": Work(4.0, 400, 2e11)}


def busy(rollout: float, teacher: float, learner: float) -> list[dict[str, float]]:
    """Seconds in which each role computes, of an iteration of 7 s."""
    return [record(**{"rollout/busy_seconds": rollout, "teacher/busy_seconds": teacher, "learner/busy_seconds": learner})]


SITUATIONS = {
    "learner": (
        SEPARATE | {"iterations": busy(4.13, 4.13, 6.8)},
        "The learner is the bottleneck: rollout and teacher wait for it 41 % of an iteration; raise learner.workers or take a smaller "
        "student.",
    ),
    "learner, several epochs": (
        SEPARATE | {"iterations": busy(4.13, 1.4, 6.8), "epochs_per_iteration": 4},
        "The learner is the bottleneck: rollout waits for it 41 % of an iteration and teacher 80 %; raise learner.workers or lower "
        "stages.distill.epochs_per_iteration.",
    ),
    "learner, far from its limit": (
        SEPARATE | {"iterations": busy(4.13, 4.13, 6.8), "limits": measurements().limits | {"learner": Limit(3.0, 2.0)}},
        "The learner is the bottleneck: rollout and teacher wait for it 41 % of an iteration; raise learner.workers or raise "
        "learner.tokens_per_microbatch.",
    ),
    "rollout": (
        SEPARATE | {"iterations": busy(6.8, 6.5, 3.5)},
        "The rollout is the bottleneck: teacher waits for it 7 % of an iteration and learner 50 %; raise rollout.workers or lower "
        "data.max_response_tokens.",
    ),
    "teacher": (
        SEPARATE | {"iterations": busy(5.6, 6.9, 3.5)},
        "The teacher is the bottleneck: rollout waits for it 20 % of an iteration and learner 50 %; raise teacher.workers or take a "
        "smaller teacher.",
    ),
    "learner, with scores out of sampling": (
        {"sharing": [["rollout"], ["learner"]], "iterations": busy(4.13, 0.0, 6.8), "alone": TWO_ROLES},
        "The learner is the bottleneck: rollout waits for it 41 % of an iteration; raise learner.workers or take a smaller student.",
    ),
    "balanced": (
        SEPARATE | {"iterations": busy(6.5, 6.5, 6.8)},
        "The roles are balanced: none waits for a tenth of an iteration; only more devices for all of them make it shorter.",
    ),
    "taking turns": (
        SEPARATE | {"iterations": busy(2.1, 0.7, 3.5)},
        "The roles wait for one another (rollout 70 %, teacher 90 %, learner 50 % of an iteration); set stages.distill.max_staleness: 1, "
        "so that sampling goes on meanwhile.",
    ),
    "waiting, although sampling is ahead": (
        SEPARATE | {"iterations": busy(2.1, 0.7, 3.5), "max_staleness": 1},
        "The roles wait for one another (rollout 70 %, teacher 90 %, learner 50 % of an iteration); raise "
        "stages.distill.prompts_per_iteration, so that waiting weighs less.",
    ),
    "publishing": (
        {"iterations": [record(**{"time/publish": 0.84})]},
        "All roles wait for publishing 12 % of an iteration; raise stages.distill.prompts_per_iteration, so that weights travel less "
        "often.",
    ),
    "driver": (
        {"iterations": [record(**{"time/iteration": 7.72})]},
        "All roles wait for the driver 10 % of an iteration; raise stages.distill.prompts_per_iteration, so that each call has more work.",
    ),
    "padding": (
        {"padding": 0.34},
        "Padding is 34 % of the learner's tokens; lower learner.tokens_per_microbatch to group similar lengths.",
    ),
    "shared devices, learner": (
        {},
        "The learner is the bottleneck: rollout and teacher wait for it 46 % of an iteration; take a smaller student (roles share devices, "
        "so more workers do not help).",
    ),
    "shared devices, rollout": (
        {"alone": SLOW_ROLLOUT, "iterations": busy(3.5, 0.7, 3.0)},
        "The rollout is the bottleneck: teacher and learner wait for it 50 % of an iteration; lower data.max_response_tokens (roles share "
        "devices, so more workers do not help).",
    ),
    "shared devices, teacher": (
        {"alone": SLOW_TEACHER, "iterations": busy(1.0, 4.9, 1.0)},
        "The teacher is the bottleneck: rollout and learner wait for it 70 % of an iteration; take a smaller teacher (roles share devices, "
        "so more workers do not help).",
    ),
    "shared devices, sampling ahead": (
        {"max_staleness": 1, "iterations": [busy(3.5, 1.4, 6.3)[0] | {"time/update": 3.7, "time/iteration": 6.9}]},
        "The learner is the bottleneck: rollout waits for it 49 % of an iteration and teacher 80 %; take a smaller student (roles share "
        "devices, so more workers do not help).",
    ),
    "shared devices, sampling ahead slows down": (
        {"max_staleness": 1, "iterations": [record(**{"time/iteration": 10.0, "time/update": 6.8})]},
        "Roles that share devices slow each other down: alone they would take 56 % of an iteration; set stages.distill.max_staleness: 0.",
    ),
}


@pytest.mark.parametrize(("changes", "sentence"), SITUATIONS.values(), ids=SITUATIONS)
def test_the_sentence(changes, sentence):
    assert bottleneck(measurements(**changes)) == sentence
