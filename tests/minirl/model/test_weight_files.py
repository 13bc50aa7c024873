"""Weight files that are not there, not whole or not the only ones are refused in a sentence that names the file."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from minirl.errors import InputError
from minirl.model.loading import load_causal_lm
from minirl.model.output_head import read_head
from minirl.model.pruning import prune_layers
from minirl.model.weight_accounting import check_weights
from minirl.model.weight_files import stored_tensors
from tests.tiny import tiny_model

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12\n"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A directory of one weight file."""
    return tiny_model(tmp_path_factory.mktemp("whole"), vocab=64, hidden=32)


@pytest.fixture(scope="module")
def sharded(whole, tmp_path_factory):
    """The same model in several weight files."""
    directory = tmp_path_factory.mktemp("sharded")
    AutoModelForCausalLM.from_pretrained(whole).save_pretrained(directory, max_shard_size="20KB")
    return str(directory)


def shards(directory) -> list[Path]:
    return sorted(Path(directory).glob("model-*.safetensors"))


def cut(file: Path, part: float) -> None:
    file.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])


SINGLE = {
    "pointer": (lambda d: (d / "model.safetensors").write_text(POINTER), "is a pointer of git-lfs.*run `git lfs pull`"),
    "half": (lambda d: cut(d / "model.safetensors", 0.5), r"no complete safetensors file \(\d+ bytes.*download or copy it again"),
    "header cut": (lambda d: cut(d / "model.safetensors", 0.001), "no complete safetensors file"),
    "empty": (lambda d: cut(d / "model.safetensors", 0), r"no complete safetensors file \(0 bytes"),
    "HTML": (lambda d: (d / "model.safetensors").write_text("<!DOCTYPE html><html>404</html>"), "no complete safetensors file"),
    "stale": (lambda d: shutil.copy(d / "model.safetensors", d / "old.safetensors"), r"also old\.safetensors, which vLLM would read too"),
}
SEVERAL = {
    "pointer": (lambda d: shards(d)[1].write_text(POINTER), "is a pointer of git-lfs"),
    "half": (lambda d: cut(shards(d)[-1], 0.5), "no complete safetensors file"),
    "missing": (lambda d: shards(d)[0].unlink(), r"lacks 1 of the \d+ weight files in its index \(model-00001"),
    "index pointer": (lambda d: (d / INDEX).write_text(POINTER), r"index\.json is a pointer of git-lfs"),
    "index cut": (lambda d: cut(d / INDEX, 0.5), r"is no index of weight files"),
    "index list": (lambda d: (d / INDEX).write_text("[]"), r"is no index of weight files"),
    "index of numbers": (lambda d: (d / INDEX).write_text('{"weight_map": {"a": 3}}'), r"is no index of weight files"),
    "index of nothing": (lambda d: (d / INDEX).write_text('{"weight_map": {}}'), r"is no index of weight files"),
    "two sets": (
        lambda d: save_file({"lm_head.weight": torch.zeros(64, 32)}, d / "model.safetensors"),
        r"holds both model\.safetensors, which transformers reads, and .* which vLLM reads",
    ),
    "twice": (
        lambda d: save_file(load_file(shards(d)[0]) | load_file(shards(d)[1]), shards(d)[1], {"format": "pt"}),
        "both hold .*delete the file that is out of date",
    ),
}


def refused(directory: Path, sentence: str) -> None:
    with pytest.raises(InputError, match=rf"^teacher\.model: .*{sentence}"):
        check_weights(str(directory), "teacher.model")
    for load in (
        lambda: load_causal_lm(str(directory), torch.float32),
        lambda: read_head(str(directory), 64),
        lambda: prune_layers(str(directory), [0], f"{directory}-pruned"),
    ):
        with pytest.raises(InputError, match=sentence):
            load()


@pytest.mark.parametrize("name", SINGLE)
def test_one_file_that_is_not_right(whole, tmp_path, name):
    directory = Path(shutil.copytree(whole, tmp_path / "model"))
    SINGLE[name][0](directory)
    refused(directory, SINGLE[name][1])


@pytest.mark.parametrize("name", SEVERAL)
def test_one_of_several_files_that_is_not_right(sharded, tmp_path, name):
    directory = Path(shutil.copytree(sharded, tmp_path / "model"))
    assert len(shards(directory)) > 2
    SEVERAL[name][0](directory)
    refused(directory, SEVERAL[name][1])


def test_headers_say_what_the_files_hold(whole, sharded):
    weights = load_file(Path(whole) / "model.safetensors")
    for directory in (whole, sharded):
        tensors = stored_tensors(directory)
        assert {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()} == {
            name: (tuple(tensor.shape), "F32") for name, tensor in weights.items()
        }
        assert all(torch.equal(tensor.read(), weights[name]) for name, tensor in tensors.items())
    assert json.loads((Path(sharded) / INDEX).read_text())["weight_map"] == {n: t.file.name for n, t in stored_tensors(sharded).items()}
