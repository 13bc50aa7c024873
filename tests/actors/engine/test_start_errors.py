"""An engine without enough memory names our own key: the KV cache's on a CPU, the share of the memory on a GPU."""

import pytest

from actors.config import EngineConfig, RolloutConfig, TeacherConfig
from actors.engine.start_errors import memory_problem
from actors.workers.rollout import RolloutWorker
from minirl.errors import InputError
from tests.tiny import tiny_model

TOO_SMALL = ValueError(
    "To serve at least one request with the model's max seq len (4096), (3.50 GiB KV cache is needed, which is larger than the "
    "available KV cache memory (1.00 GiB). Based on the available memory, the estimated maximum model length is 1024. Try "
    "increasing `gpu_memory_utilization` (which also controls CPU memory on the CPU backend) or decreasing `max_model_len`."
)
NOTHING_LEFT = ValueError("No available memory for the cache blocks. Try increasing `gpu_memory_utilization`.")
TOO_LARGE_CPU = ValueError("Available memory on node 0 (1/2 GiB) on kv cache allocation is less than requested memory for kv (64 GiB).")
TOO_LARGE_GPU = ValueError("Free memory on device cuda:0 (10/80 GiB) on startup is less than desired GPU memory utilization (0.9, 72 GiB).")


@pytest.mark.parametrize(("config", "role"), [(RolloutConfig(), "rollout"), (TeacherConfig(model="x"), "teacher")])
def test_the_key_that_helps_is_named_and_the_other_one_is_not(config: EngineConfig, role):
    problems = {
        (name, device): memory_problem(error, config, device, 4096)
        for device in ("cpu", "cuda")
        for name, error in {"small": TOO_SMALL, "nothing": NOTHING_LEFT, "cpu": TOO_LARGE_CPU, "gpu": TOO_LARGE_GPU}.items()
    }
    for (_, device), problem in problems.items():
        key, other = ("kv_cache_gib", "gpu_memory_utilization") if device == "cpu" else ("gpu_memory_utilization", "kv_cache_gib")
        assert problem.startswith(f"{role}.{key} = ") and other not in problem and "\n" not in problem
    assert "raise it to at least 3.50" in problems["small", "cpu"] and "lower it" in problems["cpu", "cpu"]
    assert "raise it" in problems["nothing", "cuda"] and "lower it" in problems["gpu", "cuda"]


def test_other_errors_are_not_about_memory():
    assert memory_problem(ValueError("There is no module named lm_head"), RolloutConfig(), "cpu", 64) is None


@pytest.mark.slow
def test_vllm_itself_with_too_small_a_cache(tmp_path):
    model = tiny_model(tmp_path, hidden=64, heads=2, max_positions=512)
    with pytest.raises(InputError, match=r"^rollout\.kv_cache_gib = 1e-05 is too small for a prompt and response of 512 tokens"):
        RolloutWorker(
            model, None, RolloutConfig(dtype="float32", kv_cache_gib=1e-5), device="cpu", threads=1, max_model_len=512,
            shared_vocabulary=512, end_tokens=(1,),
        )  # fmt: skip
