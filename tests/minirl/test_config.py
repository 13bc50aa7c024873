import re

import pytest
from pydantic import Field

from minirl.config import (
    PRESETS,
    DataConfig,
    DistillConfig,
    EvaluateConfig,
    ObjectiveConfig,
    SftConfig,
    StrictModel,
    StudentConfig,
    read_config,
    validate_config,
)
from minirl.errors import InputError


class Inner(StrictModel):
    learning_rate: float = 1.0
    updates: int = 1
    text: str | None = None
    flag: bool = False


class Outer(StrictModel):
    seed: int = 0
    inner: Inner = Inner()
    stage: Inner | None = None
    names: list[int] = Field([1], min_length=1)
    needed: str


@pytest.fixture
def read(tmp_path):
    """Read YAML text as `Outer`; `needed` is given."""

    def read(text: str = "{}", *overrides: str, model=Outer) -> Outer:
        file = tmp_path / "config.yaml"
        file.write_text(text)
        return read_config(model, file, [*(["needed=x"] if model is Outer else []), *overrides])

    return read


def refused(read, text, *overrides, model=Outer) -> str:
    with pytest.raises(InputError) as caught:
        read(text, *overrides, model=model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- reading ---


@pytest.mark.parametrize(
    ("text", "value"),
    [("5e-6", 5e-6), ("1E3", 1000.0), ("-2e+2", -200.0), (".5e1", 5.0), ("1.5e-3", 1.5e-3), ("7.0", 7.0), ("3", 3.0)],
)
def test_numbers_in_scientific_notation_are_numbers(read, text, value):
    assert read(f"inner: {{learning_rate: {text}}}").inner.learning_rate == value
    assert read("{}", f"inner.learning_rate={text}").inner.learning_rate == value


@pytest.mark.parametrize("text", ["e5", "1e", "5e-6x", "t5e6"])
def test_words_that_look_like_numbers_stay_words(read, text):
    assert read(f"inner: {{text: {text}}}").inner.text == text


def test_an_override_replaces_one_value_and_leaves_its_neighbours(read):
    text = "seed: 1\ninner: {updates: 3, text: kept}\nstage:"
    config = read(text, "inner.updates=5", "stage.flag=true", "names=[4, 5]", "inner.learning_rate=2", "inner.learning_rate=3")
    assert (config.seed, config.inner.updates, config.inner.text) == (1, 5, "kept")
    assert config.stage.flag is True and config.names == [4, 5] and config.inner.learning_rate == 3
    assert read("stage: {flag: true}", "stage=null").stage is None


@pytest.mark.parametrize("override", ["inner", "=3", "seed.deeper=1", "names=[1", "inner.text.more=1"])
def test_an_override_that_cannot_be_applied_is_named(read, override):
    assert override.split("=")[0] in refused(read, "seed: 1\ninner: {text: word}", override)


def test_files_that_are_no_config(read, tmp_path):
    with pytest.raises(InputError, match=r"cannot read the config .*absent.yaml: No such file"):
        read_config(Outer, tmp_path / "absent.yaml", [])
    assert "is not valid YAML" in refused(read, "seed: [1")
    assert "must hold a mapping" in refused(read, "- 1")
    assert "must hold a mapping" in refused(read, "")
    (tmp_path / "latin.yaml").write_bytes("seed: 1 # größer".encode("latin-1"))
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_config(Outer, tmp_path / "latin.yaml", [])


# --- validation ---


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("sed: 1", "sed", "seed"),
        ("inner: {learning_rat: 1}", "inner.learning_rat", "learning_rate"),
        ("stage: {update: 1}", "stage.update", "updates"),
    ],
)
def test_an_unknown_key_comes_with_the_nearest_known_one(read, text, key, nearest):
    assert refused(read, text) == f"{key} is not a known key; did you mean {nearest}?"


def test_a_key_that_resembles_nothing_comes_with_those_that_exist(read):
    assert refused(read, "inner: {xyz: 1}") == "inner.xyz is not a known key; known here: flag, learning_rate, text, updates"


def test_an_unknown_key_is_reported_before_anything_else(read):
    assert "sed is not a known key" in refused(read, "sed: 1\nnames: []\ninner: {updates: x}")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("inner: {updates: '3'}", "inner.updates = '3'"),
        ("inner: {updates: 1.5}", "inner.updates = 1.5"),
        ("inner: {updates: true}", "inner.updates = True"),
        ("inner: {flag: 1}", "inner.flag = 1"),
        ("inner: {learning_rate: fast}", "inner.learning_rate = 'fast'"),
        ("inner: {text: 3}", "inner.text = 3"),
        ("names: []", "names = []"),
        ("inner: 3", "inner = 3"),
    ],
)
def test_a_mistyped_value_is_named_with_its_key(read, text, key):
    assert refused(read, text).startswith(f"{key} does not fit: ")


def test_a_missing_key_is_named():
    with pytest.raises(InputError, match="^needed is missing from the config"):
        validate_config(Outer, {})


# --- presets ---


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_sets_its_switches_and_gives_way_to_those_set_by_hand(preset):
    config = validate_config(ObjectiveConfig, {"preset": preset})
    by_hand = {"reduction": "response", "single_step_coefficient": 0.25}
    assert validate_config(ObjectiveConfig, {"preset": preset, **by_hand}) == config.model_copy(update=by_hand)


def test_the_presets_are_what_the_mathematics_says():
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


# --- single sections ---


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
def test_the_student_has_one_source(values):
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
