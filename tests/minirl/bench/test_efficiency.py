"""Rates and ratios from measurements, compared with values computed by hand."""

from dataclasses import astuple, replace

import pytest

from minirl.bench.efficiency import Work, driver_seconds, group_roles_by_device, padding_share, rates_of, ratios
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
    slow = replace(halves, alone=halves.alone | {"teacher": Work(2.0, 600, 3e11)})
    assert ratios(slow)["efficiency"].value == pytest.approx((2 + 2) / 7)
    assert ratios(slow)["efficiency"].meaning == "rollout + teacher alone / iteration"


def test_work_alone_is_scaled_by_tokens_where_the_loop_had_longer_responses():
    longer = measurements(iterations=[record(**{"rollout/response_tokens": 800.0})])
    assert ratios(longer)["efficiency"].value == pytest.approx((4 + 0.6 + 3) / 7)
    assert longer.alone_seconds("rollout") == pytest.approx(4.0)


def test_the_learners_tokens_count_once_in_every_epoch():
    """Alone, the learner took 3 s for 1,200 tokens, two passes over 600; the loop had as many."""
    result = measurements(epochs_per_iteration=2, alone=measurements().alone | {"learner": Work(3.0, 1200, 9e11)})
    assert result.alone_seconds("learner") == pytest.approx(3.0)
    assert result.loop_rate("learner") == pytest.approx(1200 / 3.2)


def test_the_rates_of_one_device():
    """Alone, two devices sampled 400 tokens in 2 s and needed 2e11 FLOPs of the 2 x 1e12 that their products would do in that time.

    In the loop they were busy for 2.1 s.
    """
    rollout = rates_of(measurements(), "rollout")
    assert astuple(rollout) == pytest.approx((2, 100.0, 400 / 2.1 / 2, 5e11, 0.1, 0.1 * 2.0 / 2.1))
    # 9e11 in 3 s are 0.6 of the device's 5e11 in a second; in the loop the same work took 3.2 s
    learner = rates_of(measurements(), "learner")
    assert astuple(learner) == pytest.approx((1, 200.0, 600 / 3.2, 5e11, 0.6, 0.6 * 3.0 / 3.2))


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
