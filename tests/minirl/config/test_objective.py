"""The switches that the presets set, and the switches that exclude each other."""

import pytest

from minirl.config.objective import PRESETS, ObjectiveConfig
from minirl.config.reader import validate_config
from minirl.errors import InputError


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_sets_its_switches_and_switches_set_by_hand_win(preset):
    config = validate_config(ObjectiveConfig, {"preset": preset})
    by_hand = {"reduction": "response", "single_step_coefficient": 0.25}
    assert validate_config(ObjectiveConfig, {"preset": preset, **by_hand}) == config.model_copy(update=by_hand)


def test_the_presets_have_the_switches_of_the_paper_and_the_reference():
    paper, lmops, opd, gkd = (ObjectiveConfig(preset=name) for name in ("paper", "lmops", "opd", "gkd"))
    assert paper == ObjectiveConfig()
    assert (paper.returns, paper.discount, paper.clip_form, paper.single_step_weight) == ("future", 1.0, "outside", "importance")
    assert (paper.credit, paper.whiten, paper.reward_scale, paper.reward_clip, paper.truncated) == ("live", False, 1.0, None, "keep")
    assert (lmops.returns, lmops.discount, lmops.clip_form, lmops.single_step_weight) == ("reward_to_go", 0.95, "ppo", "none")
    assert (lmops.credit, lmops.whiten, lmops.reward_scale, lmops.reward_clip) == ("frozen", True, 0.5, 100.0)
    assert (paper.ratio_clip, lmops.ratio_clip, paper.pretrain_kd_share, lmops.pretrain_kd_share) == (0.2, 0.2, 0.0, 0.5)
    assert (opd.returns, opd.single_step_coefficient, opd.pretrain_coefficient, opd.ratio_clip) == ("immediate", 0.0, 0.0, None)
    assert (gkd.policy_gradient_coefficient, gkd.single_step_coefficient, gkd.single_step_weight) == (0.0, 1.0, "none")
    assert lmops.length_normalization and paper.length_normalization and not opd.length_normalization


EXACT = {"importance": "exact", "length_normalization": False, "ratio_clip": None}


@pytest.mark.parametrize(
    ("switches", "sentence"),
    [
        ({"whiten": True}, "whiten needs credit: frozen"),
        ({"preset": "lmops", "credit": "live"}, "whiten needs credit: frozen"),
        ({"importance": "exact"}, "importance: exact"),
        (EXACT | {"length_normalization": True}, "length_normalization: false"),
        (EXACT | {"ratio_clip": 0.2}, "ratio_clip: null"),
        (EXACT | {"discount": 0.9}, "importance: exact"),
        (EXACT | {"returns": "reward_to_go"}, "importance: exact"),
        (EXACT | {"credit": "frozen"}, "importance: exact"),
        (EXACT | {"reward_clip": 5.0}, "importance: exact"),
        (EXACT | {"whiten": True, "credit": "frozen"}, "importance: exact"),
    ],
)
def test_contradictions_are_refused(switches, sentence):
    with pytest.raises(InputError, match=sentence):
        validate_config(ObjectiveConfig, switches)


def test_the_exact_objective_can_be_set():
    assert validate_config(ObjectiveConfig, EXACT).importance == "exact"
