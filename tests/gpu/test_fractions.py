"""Fractions of a GPU: two engines, each a Ray actor with half of one GPU, sample on it at the same time what each would sample alone.

No key of a config asks for fractions yet, so this test gives the actors theirs.
"""

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.config import RolloutConfig
from actors.environment import worker_environment
from actors.workers.rollout import RolloutWorker
from tests.actors.conftest import MAX_LENGTH, hugging_face, requests, worst_gap
from tests.deadlines import deadline
from tests.tiny import END_TOKEN, tiny_model

pytestmark = pytest.mark.slow

DEVICE = "cuda"
MEMORY = 0.3  # of the GPU, for each engine
TOLERANCE = 1e-3  # nats, float32 with the GPU's own order of sums


class Engine(RolloutWorker):
    def gpus(self) -> list[int]:
        return ray.get_gpu_ids()


def test_two_engines_share_a_gpu(ray_cluster, tmp_path):
    model = tiny_model(tmp_path / "model", "llama", hidden=64)
    group = placement_group([{"CPU": 2, "GPU": 1}])  # one bundle: separate groups with fractions go to separate GPUs
    ray.get(group.ready(), timeout=deadline(10))
    options = {
        "num_cpus": 1, "num_gpus": 0.5, "scheduling_strategy": PlacementGroupSchedulingStrategy(group, 0),
        "runtime_env": {"env_vars": worker_environment(DEVICE, 1)},
    }  # fmt: skip
    config = RolloutConfig(dtype="float32", gpu_memory_utilization=MEMORY)
    engines = []
    try:
        for _ in range(2):  # one after the other, because a starting engine counts what another one takes meanwhile as its own
            engine = ray.remote(Engine).options(**options).remote(
                model, None, config, device=DEVICE, threads=1, max_model_len=MAX_LENGTH, shared_vocabulary=512, end_tokens=(END_TOKEN,)
            )  # fmt: skip
            engines.append(engine)
            assert len(ray.get(engine.gpus.remote(), timeout=deadline(120))) == 1
        assert len({tuple(ids) for ids in ray.get([engine.gpus.remote() for engine in engines])}) == 1, "each engine has a GPU of its own"
        calls = [
            engine.sample.remote(requests(8), teacher_share=0.0, max_response_tokens=32, weight_version=None, ignore_end_tokens=True)
            for engine in engines
        ]
        first, second = ray.get(calls, timeout=deadline(30))
    finally:
        for engine in engines:
            ray.kill(engine)
        remove_placement_group(group)
    student = hugging_face(model)
    for rollouts in (first, second):
        assert worst_gap(rollouts, student, None, 0.0) < TOLERANCE
