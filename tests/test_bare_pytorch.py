"""The bare computations that roles are compared with."""

import numpy as np
import pytest
import torch

from tests import bare_pytorch
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return bare_pytorch.load(tiny_model(tmp_path_factory.mktemp("model"), vocab=64), torch.float32, "cpu")


def test_every_response_has_the_whole_length(model):
    prompts = np.random.default_rng(0).integers(3, 64, (20, 4))
    tokens = bare_pytorch.sample(model, prompts, 12)
    assert tokens.shape == (20, 16)
    np.testing.assert_array_equal(tokens[:, :4], prompts)
    assert len(tokens[:, 4:].unique()) > 20  # drawn, not the most likely token


def test_the_states_do_not_depend_on_the_passes(model):
    sequences = np.random.default_rng(0).integers(3, 64, (5, 8))
    expected = model.base_model(torch.from_numpy(sequences)).last_hidden_state
    torch.testing.assert_close(bare_pytorch.states(model, sequences, 2), expected)
    assert bare_pytorch.seconds(model, bare_pytorch.states, sequences, 2) > 0
