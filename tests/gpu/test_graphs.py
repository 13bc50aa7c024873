"""CUDA graphs around the mixture: two networks with graphs in one memory pool sample what they sample without graphs."""

import pytest

from actors.config import RolloutConfig
from actors.engine import engine as engine_module
from actors.workers.rollout import RolloutWorker
from minirl.types import Rollout
from tests.actors.conftest import MAX_LENGTH, hugging_face, requests, worst_gap
from tests.tiny import END_TOKEN, tiny_model

pytestmark = pytest.mark.slow

DEVICE = "cuda"
MEMORY = 0.2  # of the GPU, for each of the two engines
SHARES = (0.2, 0.0, 1.0, 0.5)
TOLERANCE = 1e-3  # nats, float32 with the GPU's own order of sums
COUNT = 8  # requests: a batch size for which vLLM captures graphs


def sampled(paths: list[str], eager: bool, monkeypatch: pytest.MonkeyPatch) -> dict[float, list[Rollout]]:
    """Rollouts by teacher share, from an engine with or without graphs. Graphs are captured once, before the first share is set."""
    arguments_of = engine_module._device_arguments
    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "_device_arguments", lambda *given: arguments_of(*given) | ({"enforce_eager": True} if eager else {}))
        worker = RolloutWorker(
            *paths,
            RolloutConfig(dtype="float32", gpu_memory_utilization=MEMORY),
            device=DEVICE,
            threads=1,
            max_model_len=MAX_LENGTH,
            shared_vocabulary=512,
            end_tokens=(END_TOKEN,),
        )
    try:
        return {
            share: worker.sample(requests(COUNT), teacher_share=share, max_response_tokens=32, weight_version=None, ignore_end_tokens=True)
            for share in SHARES
        }
    finally:
        worker.close()


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[str]:
    shapes = {"hidden": 64}, {"hidden": 128, "layers": 4, "seed": 1}
    return [tiny_model(tmp_path_factory.mktemp("model"), "llama", **shape) for shape in shapes]


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "graphs"])
def test_log_probs_are_those_of_the_mixture(eager, paths, monkeypatch):
    """If the teacher's graphs overwrote the student's states, the log-probs of the shares between 0 and 1 would be another model's."""
    from vllm.compilation.counter import compilation_counter

    captured = compilation_counter.num_cudagraph_captured
    rollouts_by_share = sampled(paths, eager, monkeypatch)
    assert (compilation_counter.num_cudagraph_captured > captured) == (not eager and DEVICE == "cuda")
    student, teacher = map(hugging_face, paths)
    for share, rollouts in rollouts_by_share.items():
        assert worst_gap(rollouts, student, teacher, share) < TOLERANCE


def test_graphs_sample_the_tokens_of_the_eager_engine(paths, monkeypatch):
    """The same seeds; a few tokens may differ where two are as good as equally likely."""
    eager, graphs = (sampled(paths, one, monkeypatch) for one in (True, False))
    for share in SHARES:
        pairs = list(zip(eager[share], graphs[share], strict=True))
        assert sum(a.response_tokens.tolist() == b.response_tokens.tolist() for a, b in pairs) >= COUNT - 1
