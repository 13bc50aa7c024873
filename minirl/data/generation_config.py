"""Reads generation_config.json, and mends settings that transformers refuses to read or to save."""

import copy
import json
import warnings
from pathlib import Path

from transformers import GenerationConfig

from minirl.errors import InputError
from minirl.quiet import quiet_transformers

FILE = "generation_config.json"
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def read_generation_config(model: str) -> GenerationConfig | None:
    """The generation settings of a model directory or hub name, such that transformers saves them; None if it has none.

    Sampling settings without `do_sample`, as many chat models have, mean that it samples. Of settings that are invalid otherwise only the
    token ids stay. Raises InputError if the file is no JSON object.
    """
    file = Path(model) / FILE
    if file.is_file():
        try:
            written = json.loads(file.read_bytes())
        except ValueError as error:
            raise InputError(f"{file} is no JSON ({error}); download or copy it again, or delete it") from None
        if not isinstance(written, dict):
            raise InputError(f"{file} holds no JSON object of settings; download or copy it again, or delete it")
    else:
        written = {}
    try:
        settings = GenerationConfig.from_pretrained(model)
    except OSError:  # many models have no generation config
        return None
    except (ValueError, TypeError, AttributeError):
        return GenerationConfig(**{name: written.get(name) for name in TOKENS})
    sampling = copy.deepcopy(settings)
    sampling.do_sample = True
    for candidate in (settings, sampling):
        if _is_valid(candidate):
            return candidate
    return GenerationConfig(**{name: getattr(settings, name) for name in TOKENS})


def _is_valid(settings: GenerationConfig) -> bool:
    try:
        with quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            settings.validate(strict=True)
    except ValueError:
        return False
    return True
