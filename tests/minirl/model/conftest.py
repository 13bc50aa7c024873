"""Tiny models that several tests of this directory read."""

import pytest

from tests.minirl.model.tiny_families import VOCABULARY
from tests.tiny import tiny_model


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Directories of tiny models, five layers deep."""
    root, shape = tmp_path_factory.mktemp("models"), {"vocab": VOCABULARY, "hidden": 32, "layers": 5}
    return {
        f"{family} {'tied' if tied else 'untied'}": tiny_model(root / f"{family}-{tied}", family, tied=tied, **shape)
        for family in ("llama", "gpt2", "qwen2")
        for tied in (True, False)
    }
