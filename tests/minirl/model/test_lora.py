"""LoRA adapters: merged weights agree with peft, only adapters are trained, unsuitable targets are refused."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from minirl.config.student import LoraConfig
from minirl.errors import InputError
from minirl.model.loading import load_causal_lm, save_weights
from minirl.model.lora import (
    adapter_tensors,
    attach_adapters,
    check_targets,
    save_adapter,
    student_weights,
    trainable_parameters,
)
from tests.tiny import tiny_model

VOCABULARY = 64
TOKENS = torch.tensor([[5, 9, 30, 11, 2, 63, 7]])
FAMILIES = {"llama, tied": ("llama", True), "qwen2, untied, with biases": ("qwen2", False), "gpt2, weights lie [in, out]": ("gpt2", True)}


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES)
def directory(request, tmp_path_factory) -> str:
    family, tied = request.param
    return tiny_model(tmp_path_factory.mktemp("model"), family, vocab=VOCABULARY, hidden=32, heads=4, tied=tied)


def adapted(directory: str, config: LoraConfig, *, dtype: torch.dtype = torch.float32, seed: int = 3, trained: bool = True):
    """The model with adapters. trained: move the adapters away from their initial values."""
    model = load_causal_lm(directory, dtype, dropout=False)
    attach_adapters(model, config, seed=seed, dropout=False)
    if trained:
        generator = torch.Generator().manual_seed(1)
        for parameter in trainable_parameters(model):
            parameter.data += (0.05 * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)
    return model.eval()


def merged(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {weight.name: weight.merged() for weight in student_weights(model)}


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(TOKENS).logits


def test_the_merged_weights_have_the_models_names_and_shapes_and_compute_the_same(directory):
    model = adapted(directory, LoraConfig(rank=4, alpha=12.0))
    plain = AutoModelForCausalLM.from_pretrained(directory)
    weights = merged(model)
    assert {name: tuple(w.shape) for name, w in weights.items()} == {name: tuple(w.shape) for name, w in plain.named_parameters()}
    before = logits(plain)
    plain.load_state_dict(weights, strict=False)  # a tied head has no entry of its own
    assert (logits(model) - before).abs().max() > 0.1
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-5, atol=1e-5)


def test_peft_merges_a_saved_adapter_to_the_same_weights_and_saving_changes_nothing(directory, tmp_path):
    config = LoraConfig(rank=4, alpha=12.0)
    model = adapted(directory, config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = merged(model)
    tensors = {name: tensor.detach() for name, tensor in adapter_tensors(model)}
    save_weights(
        weights,
        directory,
        str(tmp_path / "best"),
        write_extra=lambda staging: save_adapter(tensors, config, directory, staging / "adapter"),
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    peft_model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(directory), tmp_path / "best" / "adapter")
    torch.testing.assert_close(logits(peft_model), logits(model), rtol=1e-5, atol=1e-5)
    peft_weights = dict(peft_model.merge_and_unload().named_parameters())
    assert set(peft_weights) == set(weights)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, peft_weights[name], rtol=1e-6, atol=1e-6)
    saved_weights = AutoModelForCausalLM.from_pretrained(tmp_path / "best").state_dict()
    assert all(torch.equal(weight, saved_weights[name]) for name, weight in weights.items())


def test_bfloat16_is_merged_in_float32_and_rounded_once(directory):
    model = adapted(directory, LoraConfig(rank=4, alpha=12.0), dtype=torch.bfloat16)
    wide = load_causal_lm(directory, torch.float32)
    attach_adapters(wide, LoraConfig(rank=4, alpha=12.0), seed=0, dropout=False)
    wide.load_state_dict({name: tensor.float() for name, tensor in model.state_dict().items()})
    exact = merged(wide)
    for name, weight in merged(model).items():
        assert torch.equal(weight.to(torch.bfloat16), exact[name].to(torch.bfloat16)), name
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_fresh_adapters_change_nothing_and_depend_on_the_seed_alone(directory):
    plain = AutoModelForCausalLM.from_pretrained(directory)
    torch.manual_seed(1)
    first = adapted(directory, LoraConfig(), trained=False)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.rand(1) == drawn  # the random state of the process is unchanged
    again, other = adapted(directory, LoraConfig(), trained=False), adapted(directory, LoraConfig(), trained=False, seed=4)
    assert torch.equal(logits(first), logits(plain))
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in merged(first).items())
    pairs = [(dict(adapter_tensors(model)) for model in (first, again, other))]
    for a, b, c in pairs:
        assert all(torch.equal(a[name], b[name]) for name in a)
        assert not any(torch.equal(a[name], c[name]) for name in a if "lora_A" in name)


def test_only_adapters_get_a_gradient(directory):
    model = adapted(directory, LoraConfig(rank=2))
    model(TOKENS, labels=TOKENS).loss.backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, _ in model.named_parameters() if "lora_" in name}
    assert all(model.get_parameter(name).grad.abs().max() > 0 for name in with_gradient)


def test_recomputed_activations_give_the_same_gradient(directory):
    gradients = []
    for recompute in (False, True):
        model = adapted(directory, LoraConfig(rank=2)).train()
        if recompute:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model(TOKENS, labels=TOKENS, use_cache=False).loss.backward()
        gradients.append([parameter.grad for parameter in trainable_parameters(model)])
    assert len(gradients[0]) > 4 and all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_gradient_is_the_chain_rule_through_the_merged_weight(directory):
    """d L / d B = scale (d L / d W) A.T and d L / d A = scale B.T (d L / d W), with d L / d W from the merged model."""
    model = adapted(directory, LoraConfig(rank=4, alpha=12.0))
    model(TOKENS, labels=TOKENS).loss.backward()
    plain = AutoModelForCausalLM.from_pretrained(directory)
    plain.load_state_dict(merged(model), strict=False)  # a tied head has no entry of its own
    plain(TOKENS, labels=TOKENS).loss.backward()
    adapters = [weight for weight in student_weights(model) if weight.adapter is not None]
    assert adapters
    for weight in adapters:
        a, b, weight_gradient = weight.adapter.a, weight.adapter.b, plain.get_parameter(weight.name).grad
        weight_gradient = weight_gradient.T if weight.adapter.transposed else weight_gradient
        torch.testing.assert_close(b.grad, 12 / 4 * weight_gradient @ a.T, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(a.grad, 12 / 4 * b.T @ weight_gradient, rtol=1e-3, atol=1e-6)


def test_the_caller_decides_on_dropout(directory):
    for dropout in (False, True):
        model = load_causal_lm(directory, torch.float32, dropout=False)
        attach_adapters(model, LoraConfig(dropout=0.5), seed=0, dropout=dropout)
        for parameter in trainable_parameters(model):
            parameter.data += 0.1
        assert torch.equal(logits(model.train()), logits(model)) != dropout


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["lm_head"], "includes lm_head, the student's output head"),
        (["wte", "embed_tokens"], "the student's input embedding"),
        (["attention_of_another_family"], "does not fit the student: .*attention_of_another_family"),
        (["mlp"], "does not fit the student"),
    ],
)
def test_targets_that_cannot_be_adapted_are_refused_before_weights_are_read(directory, targets, message, tmp_path):
    only_config = tmp_path / "config.json"
    only_config.write_bytes((Path(directory) / "config.json").read_bytes())
    with pytest.raises(InputError, match=f"student.lora.target_modules {message}" if message.startswith(("includes", "does")) else message):
        check_targets(str(tmp_path), LoraConfig(target_modules=targets))


def test_targets_that_can_be_adapted_pass(directory, tmp_path):
    (tmp_path / "config.json").write_bytes((Path(directory) / "config.json").read_bytes())
    check_targets(str(tmp_path), LoraConfig())
