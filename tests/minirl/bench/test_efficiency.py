"""Ratios and advice from measurements whose answers are worked out by hand."""

from dataclasses import replace

import pytest

from minirl.bench.efficiency import BenchResult, Limit, Work, advice, driver_seconds, padding_share, ratios, sharing
from tests.minirl.bench.measurements import measurements, record

APART = [["rollout"], ["teacher"], ["learner"]]


def test_on_shared_cores_the_limit_is_the_sum_of_the_roles():
    # alone: 400 response tokens at 200/s, 600 tokens at 1,000/s, 600 at 200/s: 2 + 0.6 + 3 s of a 7 s iteration
    assert ratios(measurements())["efficiency"].value == pytest.approx(5.6 / 7)


def test_on_own_devices_the_limit_is_the_slowest_role():
    found = ratios(measurements(sharing=APART))["efficiency"]
    assert found.value == pytest.approx(3 / 7) and found.goal == 0.9 and "learner" in found.meaning


def test_roles_that_share_add_up_and_go_on_beside_the_others():
    halves = measurements(sharing=[["rollout", "teacher"], ["learner"]])
    assert ratios(halves)["efficiency"].value == pytest.approx(3 / 7)
    slow = replace(halves, alone=halves.alone | {"teacher": Work(2.0, 600)})
    assert ratios(slow)["efficiency"].value == pytest.approx((2 + 2) / 7)
    assert ratios(slow)["efficiency"].meaning == "rollout + teacher alone / iteration"


def test_work_alone_counts_by_tokens_where_the_loop_had_longer_responses():
    longer = measurements(iterations=[record(**{"rollout/response_tokens": 800.0})])
    assert ratios(longer)["efficiency"].value == pytest.approx((4 + 0.6 + 3) / 7)
    assert longer.alone_seconds("rollout") == pytest.approx(4.0)


def test_epochs_are_the_learners_work():
    """Alone it took 3 s for 1,200 tokens, two passes over 600; the loop had as many."""
    m = measurements(epochs_per_iteration=2, alone=measurements().alone | {"learner": Work(3.0, 1200)})
    assert m.alone_seconds("learner") == pytest.approx(3.0)
    assert m.loop_rate("learner") == pytest.approx(1200 / 3.2)


def test_mixed_sampling_against_two_models_one_after_the_other():
    # 1/500 + 1/400 s a token is 222.2 tokens/s; measured 200
    assert ratios(measurements())["mixed"].value == pytest.approx(200 * (1 / 500 + 1 / 400))


def test_limits_are_the_least_over_what_it_took():
    found = ratios(measurements())
    assert found["learner"].value == pytest.approx(0.9)
    assert found["chunked_kl"].value == pytest.approx(0.8)
    assert found["publish"].value == pytest.approx(0.1)


def test_a_limit_that_could_not_be_measured_is_left_out():
    m = measurements()
    assert "learner" not in ratios(replace(m, limits={key: limit for key, limit in m.limits.items() if key != "learner"}))


def test_what_is_outside_the_verbs_is_the_drivers():
    assert driver_seconds(record()) == pytest.approx(7 - (2.5 + 0.3 + 0.1 + 3.8 + 0.25))
    found = ratios(measurements())
    assert found["driver_overhead"].value == pytest.approx(0.05 / 7) and found["driver_overhead"].met
    assert found["publish_share"].value == pytest.approx(0.25 / 7) and found["publish_share"].met


def test_goals_are_met_from_the_right_side():
    slow = measurements(iterations=[record(**{"time/iteration": 9.0, "time/publish": 0.9})])
    found = ratios(slow)
    assert found["efficiency"].met is False and found["publish_share"].met is False and found["driver_overhead"].met is False
    assert found["chunked_kl"].met is None


def test_medians_do_not_see_one_odd_iteration():
    odd = record(**{"time/iteration": 700.0, "rollout/busy_seconds": 0.1})
    three = measurements(iterations=[record(), odd, record()])
    assert ratios(three)["efficiency"].value == ratios(measurements())["efficiency"].value
    assert three.loop("time/iteration") == 7.0 and three.verb_seconds()["driver"] == pytest.approx(0.05)
    assert three.idle("rollout") == measurements().idle("rollout") == pytest.approx(1 - 2.1 / 7)


def test_who_shares():
    assert sharing({"rollout": {0, 1}, "teacher": {0, 1}, "learner": {0, 1}}) == [["rollout", "teacher", "learner"]]
    assert sharing({"rollout": {0}, "teacher": {1}, "learner": {2, 3}}) == APART
    assert sharing({"rollout": {0}, "teacher": {0}, "learner": {1}}) == [["rollout", "teacher"], ["learner"]]
    assert sharing({"rollout": {0}, "teacher": {1}, "learner": {0, 1}}) == [["rollout", "teacher", "learner"]]


def test_padding_share():
    """One worker, 20 tokens a micro-batch: lengths 10 and 8 meet (20 computed), 4 stands alone."""
    assert padding_share([8, 4, 10], 1, 20) == pytest.approx(1 - 22 / 24)
    assert padding_share([8, 8], 2, 20) == 0.0


OWN = {"sharing": APART}
SLOW_TEACHER = measurements().alone | {"teacher": Work(4.0, 600)}
SLOW_ROLLOUT = measurements().alone | {"rollout": Work(4.0, 400)}


def busy(rollout: float, teacher: float, learner: float) -> list[dict[str, float]]:
    return [record(**{"rollout/busy_seconds": rollout, "teacher/busy_seconds": teacher, "learner/busy_seconds": learner})]


SITUATIONS = {
    "rollout idle": (OWN | {"iterations": busy(4.13, 6.5, 6.8)}, "rollout idle 41 %: raise learner.workers or take a smaller student"),
    "rollout idle, several epochs": (
        OWN | {"iterations": busy(4.13, 6.5, 6.8), "epochs_per_iteration": 4},
        "rollout idle 41 %: raise learner.workers or lower stages.distill.epochs_per_iteration",
    ),
    "learner idle": (
        OWN | {"iterations": busy(6.8, 6.5, 3.5), "alone": SLOW_ROLLOUT},
        "learner idle 50 %: raise rollout.workers or lower data.max_response_tokens",
    ),
    "learner idle behind the teacher": (
        OWN | {"iterations": busy(5.6, 6.9, 3.5), "alone": SLOW_TEACHER},
        "learner idle 50 %: raise teacher.workers or take a smaller teacher",
    ),
    "teacher idle": (OWN | {"iterations": busy(6.5, 1.4, 6.8)}, "teacher idle 80 %: raise learner.workers or take a smaller student"),
    "all take turns": (
        OWN | {"iterations": busy(2.1, 0.7, 3.5)},
        "teacher idle 90 %, learner 50 % too: set stages.distill.max_staleness: 1, so that sampling goes on meanwhile",
    ),
    "all wait, though sampling goes on": (
        OWN | {"iterations": busy(2.1, 0.7, 3.5), "max_staleness": 1},
        "teacher idle 90 %, learner 50 % too: raise stages.distill.prompts_per_iteration, so that waiting weighs less",
    ),
    "nobody idle": (
        OWN | {"iterations": busy(6.5, 6.5, 6.8)},
        "no role is idle for a tenth of the time: only more devices for all of them make an iteration shorter",
    ),
    "publishing": (
        {"iterations": [record(**{"time/publish": 0.84})]},
        "publishing 12 %: raise stages.distill.prompts_per_iteration, so that weights travel less often",
    ),
    "driver": (
        {"iterations": [record(**{"time/iteration": 7.72})]},
        "driver 10 %: raise stages.distill.prompts_per_iteration, so that an iteration has more work for each call",
    ),
    "padding": ({"padding": 0.34}, "padding 34 % of the learner's tokens: lower learner.tokens_per_microbatch, so that like lengths meet"),
    "shared, learner": ({}, "learner 43 % of an iteration: take a smaller student; roles share cores, so more workers do not help"),
    "shared, learner far from its limit": (
        {"limits": measurements().limits | {"learner": Limit(3.0, 2.0)}},
        "learner 43 % of an iteration: raise learner.tokens_per_microbatch; roles share cores, so more workers do not help",
    ),
    "shared, sampling": (
        {"alone": SLOW_ROLLOUT},
        "rollout 57 % of an iteration: lower data.max_response_tokens; roles share cores, so more workers do not help",
    ),
    "shared, overlap hinders": (
        {"max_staleness": 1, "iterations": [record(**{"time/iteration": 10.0, "time/update": 6.8})]},
        "efficiency 0.56: set stages.distill.max_staleness: 0, since roles that share cores hinder each other",
    ),
}


@pytest.mark.parametrize(("changes", "sentence"), SITUATIONS.values(), ids=SITUATIONS)
def test_advice(changes, sentence):
    m: BenchResult = measurements(**changes)
    assert advice(m) == sentence
