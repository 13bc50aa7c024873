"""The learner's attention kernel: it computes the family, a wrong one is not used and the user is told, also when ZeRO 3 shards it."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config

from minirl.errors import InputError
from tests.actors.learners import VOCABULARY, blocks, learner_group

pytestmark = pytest.mark.slow

LENGTHS = (230, 40)  # the first is wider than the learner's eager limit on a CPU


@pytest.fixture(scope="module")
def gemma2(tmp_path_factory) -> str:
    config = Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=32, query_pre_attn_scalar=32, sliding_window=32, attn_logit_softcapping=5.0, max_position_embeddings=512,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape) * (0.5 if "q_proj" in name or "k_proj" in name else 64**-0.5)
    directory = tmp_path_factory.mktemp("gemma2")
    model.save_pretrained(directory)
    return str(directory)


def expected_loss(directory: str) -> float:
    """The summed cross-entropy of the blocks under transformers' eager kernel."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    total = 0.0
    for block in blocks(LENGTHS):
        ids = torch.from_numpy(block.sequence.tokens)[None]
        with torch.no_grad():
            total -= model(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None]).sum().item()
    return total


@pytest.mark.parametrize(("workers", "stage"), [(1, 0), (2, 3)])
def test_a_soft_cap_is_computed_and_a_wrong_kernel_is_replaced(workers, stage, ray_cluster, gemma2, model_directory):
    llama = model_directory("llama", vocab=VOCABULARY, hidden=32, seed=1)

    def load_with_a_wrong_sdpa(worker, path: str) -> tuple[str, bool, list[str]]:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        right = ALL_ATTENTION_FUNCTIONS["sdpa"]
        ALL_ATTENTION_FUNCTIONS["sdpa"] = lambda module, query, *rest, **named: right(module, 2 * query, *rest, **named)
        try:
            notices = worker.load_model(path)
        finally:
            ALL_ATTENTION_FUNCTIONS["sdpa"] = right
        return worker.learner.attention, worker.learner.module.attention_by_width, notices

    with learner_group(gemma2, workers=workers, zero_stage=stage) as group:
        assert group.supervised_sums(blocks(LENGTHS))["supervised"] == pytest.approx(expected_loss(gemma2), rel=1e-5)
        group.load_model(llama)
        assert group.supervised_sums(blocks(LENGTHS))["supervised"] == pytest.approx(expected_loss(llama), rel=1e-5)
        calls = [worker.__ray_call__.remote(load_with_a_wrong_sdpa, llama) for worker in group.workers]
        for attention, by_width, notices in group.get(calls, "load"):
            assert (attention, by_width) == ("eager", False)
            assert len(notices) == 1
            assert notices[0].startswith("the sdpa attention of LlamaForCausalLM differs from its eager attention")
        assert group.supervised_sums(blocks(LENGTHS))["supervised"] == pytest.approx(expected_loss(llama), rel=1e-5)


def test_a_named_kernel_that_cannot_compute_the_model_is_refused(ray_cluster, gemma2):
    message = "learner.attention: the sdpa kernel leaves out the attention soft-cap of Gemma2ForCausalLM"
    with pytest.raises(InputError, match=message), learner_group(gemma2, attention="sdpa"):
        pass
