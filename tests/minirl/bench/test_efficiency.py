"""Ratios and advice from measurements, compared with values computed by hand."""

from dataclasses import replace

import pytest

from minirl.bench.efficiency import BenchResult, Limit, Work, advice, driver_seconds, group_roles_by_device, padding_share, ratios
from tests.minirl.bench.measurements import measurements, record

SEPARATE_DEVICES = [["rollout"], ["teacher"], ["learner"]]


def test_on_shared_cores_the_limit_is_the_sum_of_the_roles():
    # alone: 400 response tokens at 200/s, 600 tokens at 1,000/s, 600 at 200/s: 2 + 0.6 + 3 s of a 7 s iteration
    assert ratios(measurements())["efficiency"].value == pytest.approx(5.6 / 7)


def test_on_separate_devices_the_limit_is_the_slowest_role():
    efficiency = ratios(measurements(sharing=SEPARATE_DEVICES))["efficiency"]
    assert efficiency.value == pytest.approx(3 / 7) and efficiency.goal == 0.9 and "learner" in efficiency.meaning


def test_roles_that_share_devices_add_up_and_run_beside_the_others():
    halves = measurements(sharing=[["rollout", "teacher"], ["learner"]])
    assert ratios(halves)["efficiency"].value == pytest.approx(3 / 7)
    slow = replace(halves, alone=halves.alone | {"teacher": Work(2.0, 600)})
    assert ratios(slow)["efficiency"].value == pytest.approx((2 + 2) / 7)
    assert ratios(slow)["efficiency"].meaning == "rollout + teacher alone / iteration"


def test_work_alone_is_scaled_by_tokens_where_the_loop_had_longer_responses():
    longer = measurements(iterations=[record(**{"rollout/response_tokens": 800.0})])
    assert ratios(longer)["efficiency"].value == pytest.approx((4 + 0.6 + 3) / 7)
    assert longer.alone_seconds("rollout") == pytest.approx(4.0)


def test_the_learners_tokens_count_once_in_every_epoch():
    """Alone, the learner took 3 s for 1,200 tokens, two passes over 600; the loop had as many."""
    result = measurements(epochs_per_iteration=2, alone=measurements().alone | {"learner": Work(3.0, 1200)})
    assert result.alone_seconds("learner") == pytest.approx(3.0)
    assert result.loop_rate("learner") == pytest.approx(1200 / 3.2)


def test_mixed_sampling_is_compared_with_both_models_one_after_the_other():
    # 1/500 + 1/400 s a token is 222.2 tokens/s; measured 200
    assert ratios(measurements())["mixed"].value == pytest.approx(200 * (1 / 500 + 1 / 400))


def test_a_limit_ratio_is_the_lower_bound_over_the_measured_time():
    by_name = ratios(measurements())
    assert by_name["learner"].value == pytest.approx(0.9)
    assert by_name["chunked_kl"].value == pytest.approx(0.8)
    assert by_name["publish"].value == pytest.approx(0.1)


def test_a_limit_that_could_not_be_measured_is_left_out():
    result = measurements()
    assert "learner" not in ratios(replace(result, limits={key: limit for key, limit in result.limits.items() if key != "learner"}))


def test_time_outside_the_verbs_is_driver_time():
    assert driver_seconds(record()) == pytest.approx(7 - (2.5 + 0.3 + 0.1 + 3.8 + 0.25))
    by_name = ratios(measurements())
    assert by_name["driver_overhead"].value == pytest.approx(0.05 / 7) and by_name["driver_overhead"].met
    assert by_name["publish_share"].value == pytest.approx(0.25 / 7) and by_name["publish_share"].met


def test_goals_are_lower_bounds_or_upper_bounds():
    slow = measurements(iterations=[record(**{"time/iteration": 9.0, "time/publish": 0.9})])
    by_name = ratios(slow)
    assert by_name["efficiency"].met is False and by_name["publish_share"].met is False and by_name["driver_overhead"].met is False
    assert by_name["chunked_kl"].met is None


def test_one_outlier_iteration_does_not_change_the_medians():
    outlier = record(**{"time/iteration": 700.0, "rollout/busy_seconds": 0.1})
    three = measurements(iterations=[record(), outlier, record()])
    assert ratios(three)["efficiency"].value == ratios(measurements())["efficiency"].value
    assert three.loop("time/iteration") == 7.0 and three.verb_seconds()["driver"] == pytest.approx(0.05)
    assert three.idle("rollout") == measurements().idle("rollout") == pytest.approx(1 - 2.1 / 7)


def test_roles_are_grouped_by_shared_devices():
    assert group_roles_by_device({"rollout": {0, 1}, "teacher": {0, 1}, "learner": {0, 1}}) == [["rollout", "teacher", "learner"]]
    assert group_roles_by_device({"rollout": {0}, "teacher": {1}, "learner": {2, 3}}) == SEPARATE_DEVICES
    assert group_roles_by_device({"rollout": {0}, "teacher": {0}, "learner": {1}}) == [["rollout", "teacher"], ["learner"]]
    assert group_roles_by_device({"rollout": {0}, "teacher": {1}, "learner": {0, 1}}) == [["rollout", "teacher", "learner"]]


def test_padding_share():
    """One rank, 20 tokens a micro-batch: lengths 10 and 8 share a micro-batch (20 computed), 4 has its own."""
    assert padding_share([8, 4, 10], 1, 20) == pytest.approx(1 - 22 / 24)
    assert padding_share([8, 8], 2, 20) == 0.0


SEPARATE = {"sharing": SEPARATE_DEVICES}
SLOW_TEACHER = measurements().alone | {"teacher": Work(4.0, 600)}
SLOW_ROLLOUT = measurements().alone | {"rollout": Work(4.0, 400)}


def busy(rollout: float, teacher: float, learner: float) -> list[dict[str, float]]:
    return [record(**{"rollout/busy_seconds": rollout, "teacher/busy_seconds": teacher, "learner/busy_seconds": learner})]


SITUATIONS = {
    "rollout idle": (SEPARATE | {"iterations": busy(4.13, 6.5, 6.8)}, "rollout idle 41 %: raise learner.workers or take a smaller student"),
    "rollout idle, several epochs": (
        SEPARATE | {"iterations": busy(4.13, 6.5, 6.8), "epochs_per_iteration": 4},
        "rollout idle 41 %: raise learner.workers or lower stages.distill.epochs_per_iteration",
    ),
    "learner idle": (
        SEPARATE | {"iterations": busy(6.8, 6.5, 3.5), "alone": SLOW_ROLLOUT},
        "learner idle 50 %: raise rollout.workers or lower data.max_response_tokens",
    ),
    "learner idle behind the teacher": (
        SEPARATE | {"iterations": busy(5.6, 6.9, 3.5), "alone": SLOW_TEACHER},
        "learner idle 50 %: raise teacher.workers or take a smaller teacher",
    ),
    "teacher idle": (SEPARATE | {"iterations": busy(6.5, 1.4, 6.8)}, "teacher idle 80 %: raise learner.workers or take a smaller student"),
    "all wait for one another": (
        SEPARATE | {"iterations": busy(2.1, 0.7, 3.5)},
        "teacher idle 90 %, learner 50 % too: set stages.distill.max_staleness: 1, so that sampling goes on meanwhile",
    ),
    "all wait, with sampling ahead": (
        SEPARATE | {"iterations": busy(2.1, 0.7, 3.5), "max_staleness": 1},
        "teacher idle 90 %, learner 50 % too: raise stages.distill.prompts_per_iteration, so that waiting weighs less",
    ),
    "no role idle": (
        SEPARATE | {"iterations": busy(6.5, 6.5, 6.8)},
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
    "padding": (
        {"padding": 0.34},
        "padding 34 % of the learner's tokens: lower learner.tokens_per_microbatch to group similar lengths",
    ),
    "shared, learner": ({}, "learner 43 % of an iteration: take a smaller student; roles share cores, so more workers do not help"),
    "shared, learner far from its limit": (
        {"limits": measurements().limits | {"learner": Limit(3.0, 2.0)}},
        "learner 43 % of an iteration: raise learner.tokens_per_microbatch; roles share cores, so more workers do not help",
    ),
    "shared, sampling": (
        {"alone": SLOW_ROLLOUT},
        "rollout 57 % of an iteration: lower data.max_response_tokens; roles share cores, so more workers do not help",
    ),
    "shared, overlap slows down": (
        {"max_staleness": 1, "iterations": [record(**{"time/iteration": 10.0, "time/update": 6.8})]},
        "efficiency 0.56: set stages.distill.max_staleness: 0, since roles that share cores slow each other down",
    ),
}


@pytest.mark.parametrize(("changes", "sentence"), SITUATIONS.values(), ids=SITUATIONS)
def test_advice(changes, sentence):
    result: BenchResult = measurements(**changes)
    assert advice(result) == sentence
