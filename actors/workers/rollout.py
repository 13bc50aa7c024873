"""One rollout worker: a vLLM engine that samples from the student, or from its mixture with the teacher, at a known version."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.config import RolloutConfig
from actors.engine.engine import architecture_of, read_model_config, start_engine, stop_engine
from actors.engine.plugin import NCCL_TRANSFER, WEIGHT_TRANSFER, WORKER_EXTENSION
from actors.weights.packed import PackedWeights, SentSample, checksum, sent_samples
from minirl.errors import InputError, RunError
from minirl.types import Rollout, SamplingRequest

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput, SamplingParams

# Of the engine. The scheduler may not run ahead: the processor must see every token that was sampled.
NGRAM_BLOCKING = {"logits_processors": ["actors.engine.ngram_blocking:NgramBlocking"], "async_scheduling": False}


class RolloutWorker:
    """Samples responses at exactly one weight version; refuses while an update is half-way or another version is loaded.

    model, teacher: directories in Hugging Face format; the teacher, where given, is held in the same engine. shared_vocabulary:
    token ids from there on have probability 0. end_tokens: each ends a response. temperature: of both networks, before they are
    mixed (None: the config's). max_model_len: tokens of prompt and response together. no_repeat_ngram: no n-gram twice in prompt and
    response (0: nothing is blocked); what is sampled then, and its log-probs, are not the policy's own.
    """

    def __init__(
        self,
        model: str,
        teacher: str | None,
        config: RolloutConfig,
        *,
        device: str,
        threads: int,
        max_model_len: int,
        shared_vocabulary: int,
        end_tokens: tuple[int, ...],
        temperature: float | None = None,
        no_repeat_ngram: int = 0,
    ):
        self._no_repeat_ngram = no_repeat_ngram
        self._has_teacher, self._end_tokens, self._max_model_len = teacher is not None, end_tokens, max_model_len
        self._transfer = weight_transfer(config, device)
        policy = _policy_overrides(model, teacher, max_model_len, shared_vocabulary, temperature or config.temperature)
        self._is_mixed = bool(policy)
        where = {"device": device, "threads": threads, "max_model_len": max_model_len}
        blocking = NGRAM_BLOCKING if no_repeat_ngram else {}
        self._engine = _start(model, config, policy, self._transfer, **where, **blocking)
        self._teacher_share: float | None = None  # what the engine mixes now: nothing certain before the first call
        self._version: int | None = 0
        self._from_disk, self._updating = True, False
        self._sent: list[SentSample] = []

    def begin_weights(self) -> None:
        """Start loading new weights: from here on no version is loaded. Raises RunError where an update is half-way."""
        if self._updating:
            raise RunError("a weight update was begun while another one is half-way; the rollout worker has to be started again")
        self._version, self._from_disk, self._updating, self._sent = None, False, True, []
        self._engine.start_weight_update()

    def load_bucket(self, bucket: PackedWeights, expected_checksum: int) -> None:
        """Load one bucket. Raises RunError where its checksum is not the sender's; the update then stays half-way."""
        self._require_update("load_bucket")
        found = checksum(bucket)
        if found != expected_checksum:
            first = bucket.entries[0][0] if bucket.entries else "nothing"
            raise RunError(f"the weights that arrived (from {first} on) have checksum {found}, not {expected_checksum} as sent")
        self._sent += sent_samples(bucket)
        self._engine.update_weights({"update_info": {"bucket": bucket}})

    def finish_weights(self, version: int, sent: list[SentSample] | None = None) -> None:
        """End the update: compare what the engine holds with what was sent, drop the prefix cache, record the version.

        sent: samples of what `receive` received, since NCCL's data never passes here.

        Raises RunError where the two differ, or where the stream left the output head out.
        """
        self._require_update("finish_weights")
        self._sent += sent or []
        self._engine.finish_weight_update()
        self._compare_loaded()
        self._reset_prefix_cache()
        self._updating, self._version = False, version

    def join_transfer(self, init_info: dict[str, Any]) -> None:
        """Join vLLM's own weight transfer (nccl), whose sender is in `actors.weights.nccl`. Not exercised by the tests: needs GPUs."""
        self._engine.init_weight_transfer_engine({"init_info": init_info})

    def receive(self, update_info: dict[str, Any]) -> None:
        """Receive all weights through vLLM's own transfer, between `begin_weights` and `finish_weights`. Needs GPUs, as above."""
        self._require_update("receive")
        self._engine.update_weights({"update_info": update_info})

    def sample(self, requests: list[SamplingRequest], **options: Any) -> list[Rollout]:
        """Sample one response a request, in their order; options as of `sample_each`."""
        finished = dict(pair for pairs in self.sample_each(requests, **options) for pair in pairs)
        return [finished[position] for position in range(len(requests))]

    def sample_each(
        self,
        requests: list[SamplingRequest],
        *,
        teacher_share: float,
        max_response_tokens: int,
        weight_version: int | None,
        to_the_limit: bool = False,
    ) -> Iterator[list[tuple[int, Rollout]]]:
        """Sample one response a request; yields those that finished together, each with its position among the requests.

        teacher_share: the mixture's a in [0, 1]. weight_version: the version that must be loaded; None means the weights on disk.
        to_the_limit: no token ends a response, so that all are equally long: for benchmarks.
        Raises RunError where another one is, or where prompt and response do not fit the engine.
        """
        self._require_version(weight_version)
        self._set_teacher_share(teacher_share)
        longest = max((len(request.prompt_tokens) for request in requests), default=0)
        if longest + max_response_tokens > self._max_model_len:
            raise RunError(
                f"a prompt of {longest} and a response of {max_response_tokens} tokens exceed the engine's {self._max_model_len}"
            )
        # Cached prompts may stem from older weights, or lack the part of a network that was skipped then. Even where they do not,
        # a call that finds some differs in the last bits from one that finds none: results would depend on the calls before.
        self._reset_prefix_cache()
        engine, ends = self._engine.llm_engine, () if to_the_limit else self._end_tokens
        for position, request in enumerate(requests):
            prompt = {"prompt_token_ids": request.prompt_tokens.tolist()}
            engine.add_request(str(position), prompt, self._sampling(request, max_response_tokens, ends))
        while engine.has_unfinished_requests():
            finished = [output for output in engine.step() if output.finished]
            if finished:
                yield [(int(output.request_id), self._rollout(requests[int(output.request_id)], output)) for output in finished]

    def close(self) -> None:
        """Stop the engine and the processes that it started."""
        stop_engine(self._engine)

    def _sampling(self, request: SamplingRequest, max_response_tokens: int, end_tokens: tuple[int, ...]) -> "SamplingParams":
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        # ignore_eos: the end tokens are the given ones alone, not also what the model's directory says.
        return SamplingParams(
            temperature=1.0, top_p=1.0, seed=request.seed, max_tokens=max_response_tokens, stop_token_ids=list(end_tokens),
            ignore_eos=True, logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args={"no_repeat_ngram": self._no_repeat_ngram} if self._no_repeat_ngram else None,
        )  # fmt: skip

    def _rollout(self, request: SamplingRequest, output: "RequestOutput") -> Rollout:
        completion = output.outputs[0]
        if completion.finish_reason not in ("stop", "length"):
            raise RunError(f"vLLM ended the response to prompt {request.prompt_index} with {completion.finish_reason!r}")
        tokens = np.array(completion.token_ids, np.int64)
        logprobs = [step[token].logprob for step, token in zip(completion.logprobs, completion.token_ids, strict=True)]
        return Rollout(
            prompt_tokens=request.prompt_tokens,
            response_tokens=tokens,
            behavior_logprobs=np.array(logprobs, np.float32),
            truncated=int(tokens[-1]) not in self._end_tokens,
            weight_version=self._version,
            prompt_index=request.prompt_index,
            sample_index=request.sample_index,
            teacher=request.teacher,
        )

    def _set_teacher_share(self, teacher_share: float) -> None:
        if teacher_share > 0 and not self._has_teacher:
            raise RunError(f"asked to sample with a teacher's share of {teacher_share}, but this engine holds no teacher")
        if not 0 <= teacher_share <= 1:
            raise RunError(f"the teacher's share {teacher_share} is not between 0 and 1")
        if self._is_mixed and teacher_share != self._teacher_share:
            self._engine.collective_rpc("set_teacher_share", args=(teacher_share,))
        self._teacher_share = teacher_share

    def _reset_prefix_cache(self) -> None:
        if not self._engine.reset_prefix_cache():
            raise RunError("vLLM could not reset its prefix cache, since requests are still running")

    def _require_update(self, call: str) -> None:
        if not self._updating:
            raise RunError(f"{call} outside of a weight update; begin_weights comes first")

    def _require_version(self, wanted: int | None) -> None:
        if self._updating:
            raise RunError("asked to sample while a weight update is half-way")
        if wanted is None and not self._from_disk:
            raise RunError(f"asked to sample with the weights on disk, but version {self._version} is loaded")
        if wanted is not None and wanted != self._version:
            raise RunError(f"asked to sample with weight version {wanted}, but version {self._version} is loaded")

    def _compare_loaded(self) -> None:
        if not any(sample.name == "lm_head.weight" for sample in self._sent):
            raise RunError("the weights that were sent lack lm_head.weight; a tied head has to be sent too")
        for compared, different in self._engine.collective_rpc("compare_loaded", args=(self._sent,)):
            if different:
                raise RunError(f"after loading, {len(different)} tensors of the rollout engine are not what was sent, {different[0]} first")
            if not compared:
                raise RunError("none of the tensors that were sent could be compared with the rollout engine's")


def weight_transfer(config: RolloutConfig, device: str) -> str:
    """How new weights reach the engine: "host_memory" or "nccl". Raises InputError for nccl without GPUs."""
    if config.weight_transfer == "nccl" and device != "cuda":
        raise InputError("rollout.weight_transfer: nccl moves weights between GPUs and this run has none; set it to auto or host_memory")
    if config.weight_transfer != "auto":
        return config.weight_transfer
    return "nccl" if device == "cuda" else WEIGHT_TRANSFER


def _policy_overrides(model: str, teacher: str | None, max_model_len: int, shared_vocabulary: int, temperature: float) -> dict[str, Any]:
    """vLLM's hf_overrides: our model class, or nothing where the student's own class samples the same distribution."""
    config = read_model_config(model, max_model_len)
    if teacher is None and temperature == 1.0 and shared_vocabulary == config.vocab_size:
        return {}
    if teacher is not None:
        read_model_config(teacher, max_model_len)
    settings = {
        "teacher": teacher,
        "student_architecture": architecture_of(config, model),
        "temperature": temperature,
        "shared_vocabulary": shared_vocabulary,
    }
    return {"architectures": ["MixedPolicyForCausalLM"], "mixed_policy": settings}


def _start(model: str, config: RolloutConfig, policy: dict[str, Any], transfer: str, *, device: str, **where: Any) -> "LLM":
    from vllm.config import WeightTransferConfig

    engine = start_engine(
        model,
        config,
        mixed=bool(policy),
        device=device,
        overrides=policy,
        logprobs_mode="processed_logprobs",
        enable_prefix_caching=True,
        skip_tokenizer_init=True,
        weight_transfer_config=WeightTransferConfig(backend=NCCL_TRANSFER if transfer == "nccl" else WEIGHT_TRANSFER),
        worker_extension_cls=WORKER_EXTENSION,
        **where,
    )
    if transfer == WEIGHT_TRANSFER:
        engine.init_weight_transfer_engine({"init_info": {}})
    return engine
