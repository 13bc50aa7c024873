"""Generation settings are read as transformers reads them, and mended where it refuses to read or to save them."""

import json

import pytest
from transformers import GenerationConfig

from minirl.data.generation_config import read_generation_config
from minirl.errors import InputError


def settings_of(directory, written) -> GenerationConfig | None:
    (directory / "generation_config.json").write_text(written if isinstance(written, str) else json.dumps(written))
    return read_generation_config(str(directory))


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ({"eos_token_id": [1, 7], "do_sample": True, "top_k": 20}, {"do_sample": True, "top_k": 20}),
        ({"eos_token_id": [1, 7], "temperature": 0.9, "top_p": 0.6}, {"do_sample": True, "temperature": 0.9, "top_p": 0.6}),
        ({"eos_token_id": [1, 7], "max_new_tokens": 0}, {"max_new_tokens": None}),
        ({"eos_token_id": [1, 7], "early_stopping": "often"}, {"early_stopping": None}),
        ({"eos_token_id": [1, 7], "temperature": "warm"}, {}),
    ],
)
def test_what_transformers_refuses_is_mended_and_the_end_tokens_stay(tmp_path, written, read):
    settings = settings_of(tmp_path, written)
    settings.save_pretrained(tmp_path / "again")
    assert settings.eos_token_id == [1, 7]
    assert {key: getattr(settings, key) for key in read} == read


def test_a_model_without_generation_settings(tmp_path):
    assert read_generation_config(str(tmp_path)) is None


@pytest.mark.parametrize("written", ["{", "", "[]", "version https://git-lfs.github.com/spec/v1\n"])
def test_a_file_that_is_not_json(tmp_path, written):
    with pytest.raises(InputError, match=r"generation_config\.json (is no JSON|holds no JSON object)"):
        settings_of(tmp_path, written)
