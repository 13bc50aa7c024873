"""The config reader: YAML, overrides, validation, and the sentences of its errors."""

import os
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from minirl.config.reader import read_config, validate_config
from minirl.config.strict import PathText, StrictModel
from minirl.errors import InputError


class Inner(StrictModel):
    learning_rate: float = 1.0
    updates: int = 1
    text: str | None = None
    flag: bool = False
    mode: Literal["auto", "on", "off"] = "auto"
    path: PathText | None = None


class Outer(StrictModel):
    seed: int = 0
    inner: Inner = Inner()
    stage: Inner | None = None
    names: list[int] = Field([1], min_length=1)
    words: list[str] | Literal["all"] = "all"
    sections: dict[str, Inner] = {}
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


# --- YAML 1.2: the key's type decides ---


@pytest.mark.parametrize("word", ["off", "on", "no", "yes", "Off", "ON", "n"])
def test_a_switch_is_a_boolean_only_where_the_key_is_one(read, word):
    switch = word.lower() in ("on", "yes")
    assert read(f"inner: {{flag: {word}, text: {word}}}").inner == Inner(flag=switch, text=word)
    assert read("{}", f"inner.flag={word}").inner.flag is switch
    assert read(f"words: [{word}]").words == [word]
    assert "inner.flag" in refused(read, f"inner: {{flag: '{word}'}}")  # with quotes it is a text


def test_a_choice_named_on_or_off(read):
    assert [read(f"inner: {{mode: {word}}}").inner.mode for word in ("on", "off", "auto")] == ["on", "off", "auto"]


@pytest.mark.parametrize(("text", "number"), [("010", 10), ("0o17", 15), ("0x1F", 31), ("+7", 7)])
def test_a_number_is_what_yaml_1_2_reads(read, text, number):
    config = read(f"inner: {{updates: {text}, learning_rate: {text}, text: {text}}}\nwords: [{text}]")
    assert config.inner.updates == number and config.inner.learning_rate == number
    assert config.inner.text == text and config.words == [text]  # a name may consist of digits
    assert type(config.inner.updates) is int and type(config.inner.text) is str


@pytest.mark.parametrize("text", ["1_000", "1:30", "2026-01-02", "0b11"])
def test_what_only_yaml_1_1_reads_as_a_number_is_a_text(read, text):
    assert read(f"inner: {{text: {text}}}").inner.text == text
    assert "inner.updates" in refused(read, f"inner: {{updates: {text}}}")


def test_names_of_sections_are_texts(read):
    assert list(read("sections: {no: {updates: 1}, 010: {}, null: {}, true: {}}").sections) == ["no", "010", "null", "true"]


def test_merge_keys_stay(read):
    config = read("sections:\n  a: &a {updates: 3, text: x}\n  b: {<<: *a, updates: 4}")
    assert (config.sections["b"].updates, config.sections["b"].text) == (4, "x")


@pytest.mark.parametrize("text", [".inf", "-.inf", ".nan", "1e999"])
def test_a_number_that_is_not_finite_is_refused(read, text):
    assert "inner.learning_rate" in refused(read, f"inner: {{learning_rate: {text}}}")


def test_a_key_that_is_given_twice_is_named_with_both_lines(read, tmp_path):
    sentence = refused(read, "seed: 1\ninner: {updates: 3}\n\nseed: 2\n")
    assert sentence == f"the config {tmp_path / 'config.yaml'} gives the key seed twice, in line 1 and in line 4; keep one of them"
    assert "gives the key updates twice, in line 2 and in line 3" in refused(read, "inner:\n  updates: 1\n  'updates': 2")
    assert "gives the key seed twice" in refused(read, "? seed\n: 1\n? seed\n: 1")
    assert "gives the key updates twice" in refused(read, "{}", "inner={updates: 1, updates: 2}")
    assert "gives the key << twice" not in refused(read, "sections: {a: &a {updates: 1}, b: {<<: *a, updates: 2, updates: 3}}")


@pytest.mark.parametrize(
    "text",
    [
        "seed: !!int x", "seed: !!timestamp x", "seed: !!python/name:os.system x", "seed: " + "9" * 5000, "a: &a [*a]", "{[1]: 2}",
        "? {a: b}\n: 1", "[" * 500, "a: \x01", "- <<: 3", "<<: 3", "seed: 1\n---\nseed: 2", "\t", "inner: *nothing", "%TAG x",
        "inner: {1: 2}", "1: 2", "stage: &s {stage: *s}", "!!set {seed}", "!!omap [seed: 1]", "seed: !!binary x=", "seed: !x y",
    ],
)  # fmt: skip
def test_text_that_is_no_config_is_one_sentence(read, text):
    refused(read, text)
    if not text.startswith(("1:", "inner: {1")):
        refused(read, "{}", f"inner={text}")


# --- paths ---


def test_home_and_variables_are_expanded_in_paths(read, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch")
    for text, path in {
        "~/runs": "/home/me/runs", "$SCRATCH/a": "/scratch/a", "${SCRATCH}/a": "/scratch/a", "~": "/home/me", "owner/name": "owner/name",
    }.items():  # fmt: skip
        assert read(f"inner: {{path: '{text}'}}").inner.path == path
    monkeypatch.chdir(tmp_path)
    Path("$odd").mkdir()
    assert read("inner: {path: $odd}").inner.path == "$odd"  # it exists under this name
    assert "NOWHERE in $NOWHERE/x is not set" in refused(read, "inner: {path: $NOWHERE/x}")
    assert r"half a character (\ud83d), which no path can" in refused(read, r'inner: {path: "\ud83d/x"}')
    assert "~nobody-at-all is not the home" in refused(read, "inner: {path: ~nobody-at-all/x}")
    assert "it is empty" in refused(read, "inner: {path: ''}")
    assert read("inner: {text: $NOWHERE}").inner.text == "$NOWHERE"  # only paths are expanded
    assert not os.path.exists("~")


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
    assert refused(read, "inner: {xyz: 1}") == "inner.xyz is not a known key; known here: flag, learning_rate, mode, path, text, updates"


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
        ("inner: {text: true}", "inner.text = True"),
        ("names: []", "names = []"),
        ("inner: 3", "inner = 3"),
    ],
)
def test_a_mistyped_value_is_named_with_its_key(read, text, key):
    assert refused(read, text).startswith(f"{key} does not fit: ")


def test_a_missing_key_is_named():
    with pytest.raises(InputError, match="^needed is missing from the config"):
        validate_config(Outer, {})
