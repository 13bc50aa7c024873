"""vLLM's Model Runner V1: pinned for every engine, checked at the engine's start, and read here alone.

vLLM 0.32 takes V2 on a GPU and V1 on a CPU unless `VLLM_USE_V2_MODEL_RUNNER` decides. It is pinned, so that a test on a CPU exercises the
sampler, the pooling path and the logits-processor interface that a GPU uses. V1 is deprecated. A move to V2 needs:

    actors.engine.ngram_blocking   V2 refuses it: a processor is a vllm.v1.worker.gpu.sample.logits_processor.LogitsProcessor, with
                                   `add_request(slot, params)` and `apply(logits, ctx)`, and finds the tokens on the device
    seeds of requests              V2 draws other tokens: it hashes seed and position where V1 has a generator for each request
    this module                    V2 has no `input_batch`; its runner's `sample(hidden_states, input_batch, grammar_output)` gets one, with
                                   `req_ids` and `seq_lens_cpu_upper_bound`, and `req_states.prompt_len` holds the prompts' lengths

The weight transfer, `WorkerExtension`, the mixture model and the scoring model use what both runners have.
"""

from typing import TYPE_CHECKING, Any

from torch import nn

from minirl.errors import RunError

if TYPE_CHECKING:
    from vllm import LLM

RUNNER_ENVIRONMENT = {"VLLM_USE_V2_MODEL_RUNNER": "0"}  # vLLM's own child processes inherit it; there is no engine argument


def check_runner(engine: "LLM") -> None:
    """Raises RunError if a rank of the engine runs another model runner than V1.

    vLLM's watermarking overrides the pin, and HiSparse refuses it. An engine has them only by an argument, and none of ours sets them.
    """
    others = sorted({name for name in engine.collective_rpc("runner_class") if not _is_v1(name)})
    if others:
        pinned = " ".join(f"{name}={value}" for name, value in RUNNER_ENVIRONMENT.items())
        raise RunError(
            f"vLLM started the model runner {others[0]} although {pinned} asks for Model Runner V1; remove what overrides it "
            "(watermarking, HiSparse, a vLLM plugin), or install the pinned version of vLLM"
        )


def runner_class(worker: Any) -> str:
    """The full name of the model runner's class on this rank."""
    runner = type(worker.model_runner)
    return f"{runner.__module__}.{runner.__qualname__}"


def loaded_model(worker: Any) -> nn.Module:
    """The model that the rank runs, without the wrapper that vLLM puts around a model whose whole step is one CUDA graph."""
    return worker.model_runner.get_model()


def sampled_places(runner: Any) -> tuple[list[str], list[int]]:
    """For each row of the hidden states that the step's `compute_logits` gets: its request, and the row's place in the response.

    Place i predicts the response's token i. The ids are vLLM's own, as `add_request` returns them. A place below 0 belongs to a prompt that
    is not yet complete. After a preemption the places of a request come again, from some lower one on. Under async scheduling one place
    more than its tokens may come for a request that has ended.
    """
    batch, count = runner.input_batch, runner.input_batch.num_reqs
    places = runner.optimistic_seq_lens_cpu[:count].numpy() - batch.num_prompt_tokens[:count]
    return list(batch.req_ids[:count]), places.tolist()


def _is_v1(name: str) -> bool:
    return name.startswith(("vllm.v1.worker.gpu_model_runner.", "vllm.v1.worker.cpu_model_runner."))
