"""Every family of docs/models.md: what needs no engine, and for some families, all steps of a run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from minirl.errors import InputError
from minirl.model.loading import load_causal_lm, save_weights
from minirl.model.lora import student_weights
from minirl.model.microbatch import make_microbatch
from minirl.model.output_head import check_head, read_head
from minirl.model.student import StudentModule
from tests.deadlines import deadline
from tests.families.models import FAMILIES, VOCABULARY, family_model
from tests.families.steps import TOLERANCE, accept, gap, reference, rows, sequences, targets_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def directory(family, tmp_path_factory) -> str:
    return family_model(tmp_path_factory.mktemp(family), family)


def test_a_dense_family_may_learn_and_every_family_may_teach(family, directory):
    accept({"teacher.model": directory})
    if FAMILIES[family].student:
        accept({"student.model": directory})
    else:
        with pytest.raises(InputError, match="^student.model: .* is a mixture of experts, which can teach but not be trained"):
            accept({"student.model": directory})


@torch.no_grad()
def test_the_learners_log_probs_equal_those_of_transformers(directory):
    model = load_causal_lm(directory, torch.float32, attention="eager").eval()
    check_head(model, "student")
    module, network = StudentModule(model, vocabulary=VOCABULARY, chunk_tokens=64), reference(directory)
    logprobs = module(make_microbatch(sequences())).student_logprobs
    expected = torch.cat([targets_of(sequence, rows(network, sequence.tokens)) for sequence in sequences()])
    assert gap(logprobs, expected) < TOLERANCE


@torch.no_grad()
def test_the_head_in_the_files_gives_the_models_logits(directory):
    network, tokens = reference(directory), torch.from_numpy(sequences()[1].tokens)[None]
    logits = read_head(directory, VOCABULARY).logits(network.base_model(tokens).last_hidden_state[0])
    torch.testing.assert_close(logits, network(tokens).logits[0], atol=1e-4, rtol=0)


def test_saved_weights_load_in_transformers_under_their_own_names(directory, tmp_path):
    model = load_causal_lm(directory, torch.float32)
    weights = {weight.name: weight.merged() + 0.01 for weight in student_weights(model)}
    save_weights(weights, directory, str(tmp_path / "saved"))
    saved, problems = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(problems[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert {name: tuple(tensor.shape) for name, tensor in saved.named_parameters()} == {n: tuple(w.shape) for n, w in weights.items()}
    assert all(torch.equal(weight, saved.get_parameter(name)) for name, weight in weights.items())


@pytest.mark.slow
@pytest.mark.parametrize("special", ["gemma2", "bloom", "gpt_neox"])
def test_a_family_with_a_class_of_its_own_passes_every_step(special, tmp_path):
    """Gemma 2 has no head of its own in vLLM, Bloom's loader renames the head, GPT-NeoX runs on vLLM's transformers backend."""
    command = [sys.executable, "-m", "tests.families.steps", special, str(tmp_path / "result.json")]
    subprocess.run(command, timeout=deadline(60), check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
    steps = json.loads((tmp_path / "result.json").read_text())["steps"]
    assert set(steps.values()) == {"ok"}, steps


def test_the_page_has_a_row_for_every_family():
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    rows_of_table = re.findall(r"^\| ([^|]+) \|", page.partition("families: begin")[2].partition("families: end")[0], re.M)
    assert rows_of_table[1:] == [family.title for family in FAMILIES.values()]  # the first row is the header
