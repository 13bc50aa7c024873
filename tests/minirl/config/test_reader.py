"""The config reader: YAML, overrides, validation, and the sentences of its errors."""

import pytest
from pydantic import Field

from minirl.config.reader import read_config, validate_config
from minirl.config.strict import StrictModel
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
    """Reads YAML text as `Outer`, with a value for `needed`."""

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
def test_words_that_look_like_numbers_stay_text(read, text):
    assert read(f"inner: {{text: {text}}}").inner.text == text


def test_an_override_replaces_one_value_and_leaves_its_neighbours(read):
    text = "seed: 1\ninner: {updates: 3, text: unchanged}\nstage:"
    config = read(text, "inner.updates=5", "stage.flag=true", "names=[4, 5]", "inner.learning_rate=2", "inner.learning_rate=3")
    assert (config.seed, config.inner.updates, config.inner.text) == (1, 5, "unchanged")
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
