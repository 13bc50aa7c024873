"""Model Runner V1 is pinned: nothing in the environment changes that, and an engine that runs another one is refused."""

import os

import pytest

from actors.engine.engine import check_environment
from actors.engine.model_runner import check_runner
from minirl.errors import InputError, RunError
from tests.actors.conftest import rollout_worker

V1 = "vllm.v1.worker.gpu_model_runner.GPUModelRunner"


class Engine:
    """The class names that two ranks answer."""

    def __init__(self, *names: str):
        self.names = names

    def collective_rpc(self, method: str) -> list[str]:
        assert method == "runner_class"
        return list(self.names)


def test_an_engine_with_another_model_runner_is_refused():
    check_runner(Engine(V1, V1))
    with pytest.raises(RunError, match=r"started the model runner vllm.v1.worker.gpu.model_runner.GPUModelRunner although .*RUNNER=0"):
        check_runner(Engine(V1, "vllm.v1.worker.gpu.model_runner.GPUModelRunner"))


def test_breakable_graphs_are_refused(monkeypatch):
    monkeypatch.setenv("VLLM_USE_BREAKABLE_CUDAGRAPH", "0")
    check_environment()
    monkeypatch.setenv("VLLM_USE_BREAKABLE_CUDAGRAPH", "1")
    with pytest.raises(InputError, match="^VLLM_USE_BREAKABLE_CUDAGRAPH=1 would freeze the teacher share"):
        check_environment()


@pytest.mark.slow
@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_every_rank_runs_v1_whatever_the_environment_says(tensor_parallel, model_directory, monkeypatch):
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    worker = rollout_worker(model_directory("llama"), tensor_parallel=tensor_parallel)
    try:
        names = worker._engine.collective_rpc("runner_class")
    finally:
        worker.close()
    assert names == ["vllm.v1.worker.cpu_model_runner.CPUModelRunner"] * tensor_parallel
    assert os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "0"
