"""Publishing by NCCL: afterwards the engine holds, tensor by tensor, what an engine loads from the learner's exported student."""

import pytest
import torch

from actors.config import RolloutConfig
from actors.groups.publishing import make_publisher
from actors.groups.rollout_group import RolloutGroup
from tests.actors.conftest import MAX_LENGTH
from tests.actors.groups.test_iteration import VOCABULARY, started, visible_update
from tests.actors.learners import CLUSTER, learner_group
from tests.tiny import END_TOKEN, tiny_model

pytestmark = pytest.mark.slow

DEVICE = "cuda"


def rollout_group(student: str) -> RolloutGroup:
    config = RolloutConfig(dtype="bfloat16", gpu_memory_utilization=0.3, kv_cache_gib=0.0625)
    engine = {"max_model_len": MAX_LENGTH, "shared_vocabulary": VOCABULARY, "temperature": 1.0, "end_tokens": (END_TOKEN,)}
    return RolloutGroup(config, CLUSTER, DEVICE, model=student, teacher=None, **engine)


def engine_weights(group: RolloutGroup) -> dict[str, torch.Tensor]:
    """Every parameter of the first engine, under vLLM's names."""

    def read(worker) -> dict[str, torch.Tensor]:
        def parameters(vllm_worker) -> dict[str, torch.Tensor]:
            return {name: parameter.detach().cpu() for name, parameter in vllm_worker.model_runner.model.named_parameters()}

        return worker._engine.collective_rpc(parameters)[0]

    return group.result(group.workers[0].__ray_call__.remote(read), 0, "read the weights")


def test_the_engine_holds_what_the_learner_exports(two_gpus, ray_cluster, tmp_path):
    student = tiny_model(tmp_path / "student", seed=1)
    teacher = tiny_model(tmp_path / "teacher", hidden=96, heads=3, seed=2)
    with started(rollout_group(student)) as rollout, learner_group(student, teacher, vocabulary=VOCABULARY, device=DEVICE) as learner:
        before, publisher = engine_weights(rollout), make_publisher(learner, rollout)
        for version in (1, 2):  # the second one reuses the channel that the first one opened
            visible_update(learner, teacher)
            publisher.publish(version).wait()
        published = engine_weights(rollout)
        learner.export(student, str(tmp_path / "exported"))
    with started(rollout_group(str(tmp_path / "exported"))) as rollout:
        loaded = engine_weights(rollout)
    assert published.keys() == loaded.keys()
    for name, tensor in loaded.items():
        assert torch.equal(published[name], tensor), name
        assert not torch.equal(before[name], tensor), f"{name} did not change"
