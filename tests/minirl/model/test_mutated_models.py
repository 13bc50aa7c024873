"""Random mutations of a model directory, its config and its tokenizer: each reader raises InputError or succeeds, and nothing else."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minirl.data.tokenizer import read_tokenizer
from minirl.data.vocab import shared_vocabulary
from minirl.errors import InputError
from minirl.model.loading import check_supported, resolve_model
from tests.tiny import tiny_model

FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "model.safetensors")
# Sizes stay small, because a valid config of a huge model takes as long as a huge model.
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 600), st.floats(-2, 700), st.text(max_size=8), st.just([]), st.just({}), st.just([None]),
    st.just({"a": 1}), st.just("1e-6"), st.just("\ud800"), st.just([[1]]), st.just("{{ x"),
)  # fmt: skip
SETTINGS = settings(max_examples=120, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {family: tiny_model(root / family, family, vocab=96) for family in ("llama", "gpt2")}


def paths_of(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all values in a JSON value, of a few in a long list or mapping."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items)[:30]:
        yield from paths_of(item, (*path, key))


@st.composite
def mutations(draw: st.DrawFn) -> tuple[str, str, Any]:
    """A file, and what is done to it. A number picks the place, as a share of the file."""
    kind = draw(st.sampled_from(["replace", "delete", "extra", "truncate", "flip", "remove", "directory"]))
    return (
        draw(st.sampled_from(FILES[:3] if kind in ("replace", "delete", "extra") else FILES)),
        kind,
        (draw(st.floats(0, 1)), draw(VALUES)),
    )


def mutate(directory: Path, file: str, kind: str, place: float, value: Any) -> None:
    path = directory / file
    if kind in ("replace", "delete", "extra"):
        content = json.loads(path.read_text())
        places = list(paths_of(content))[1:]
        *parents, last = places[min(int(place * len(places)), len(places) - 1)]
        owner = content
        for key in parents:
            owner = owner[key]
        if kind == "delete":
            del owner[last]
        elif kind == "extra" and isinstance(owner, dict):
            owner[str(value)[:5]] = value
        else:
            owner[last] = value
        return path.write_text(json.dumps(content)) and None
    raw = path.read_bytes() if path.is_file() else b""
    position = int(place * max(len(raw) - 1, 0))
    if kind == "truncate":
        path.write_bytes(raw[:position])
    elif kind == "flip" and raw:
        path.write_bytes(raw[:position] + bytes([raw[position] ^ (1 << position % 8)]) + raw[position + 1 :])
    else:
        path.unlink(missing_ok=True)
        if kind == "directory":
            path.mkdir()


def read_all(directory: str) -> None:
    """What every command does first with a model."""
    path = resolve_model(directory, "student.model")
    config = check_supported(path, "student.model")
    tokenizer = read_tokenizer(path, "student.model")
    shared_vocabulary(tokenizer, tokenizer, config.vocab_size, config.vocab_size)


@SETTINGS
@given(family=st.sampled_from(["llama", "gpt2"]), changes=st.lists(mutations(), min_size=1, max_size=2, unique_by=lambda change: change[0]))
def test_a_mutated_model_directory(models, family, changes):
    with tempfile.TemporaryDirectory() as root:
        directory = Path(shutil.copytree(models[family], Path(root) / "model"))
        for file, kind, (place, value) in changes:
            if (directory / file).is_file():
                mutate(directory, file, kind, place, value)
        try:
            read_all(str(directory))
        except InputError as error:
            assert "\n" not in str(error) and "student" in str(error), str(error)


def test_the_valid_models_are_accepted(models):
    for directory in models.values():
        read_all(directory)


@pytest.mark.parametrize(
    "name", ["", "a\0b", "x" * 5000, "~nobody/x", "/", ".", "a/b/c", "config.json", "owner/na me", "-x", "é/ü", "a//b", "\ud800"]
)
def test_a_name_that_is_no_model(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError):
        resolve_model(name, "student.model")


WRONG = {
    "a quantised model": ("config.json", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"is quantised \(gptq\)"),
    "a text as a size": ("config.json", {"vocab_size": "96"}, "config.json"),
    "no size": ("config.json", {"vocab_size": None}, "config.json"),
    "heads that do not divide": ("config.json", {"num_attention_heads": 3}, r"config.json .*\(64\) is not a multiple"),
    "an unknown activation": ("config.json", {"hidden_act": "nonsense"}, "config.json"),
    "a newer tokenizer": ("tokenizer.json", {"model": {"type": "SomethingNewer"}}, r"tokenizer.json: data did not match any variant"),
    "a template that is a number": ("tokenizer_config.json", {"chat_template": 3}, "tokenizer|template"),
}


@pytest.mark.parametrize(("file", "change", "sentence"), WRONG.values(), ids=WRONG)
def test_the_file_and_the_librarys_first_line_are_named(models, tmp_path, file, change, sentence):
    directory = shutil.copytree(models["llama"], tmp_path / "model")
    (directory / "chat_template.jinja").unlink()
    (directory / file).write_text(json.dumps(json.loads((directory / file).read_text()) | change))
    with pytest.raises(InputError, match=sentence):
        read_all(str(directory))


def test_a_tokenizer_without_its_vocabulary(models, tmp_path):
    """transformers would make an empty one from tokenizer_config.json alone."""
    directory = shutil.copytree(models["llama"], tmp_path / "model")
    (directory / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"has no tokenizer that .*tokenizer\.json"):
        read_all(str(directory))
