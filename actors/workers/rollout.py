"""One rollout worker: a vLLM engine that samples from the student or the mixture, at a known weight version."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.config import RolloutConfig, ScoreCapture
from actors.engine.engine import architecture_of, has_room, read_model_config, start_engine, stop_engine
from actors.engine.plugin import HOST_MEMORY_TRANSFER, NCCL_TRANSFER
from actors.request_queue import PositionedRequest, QueuedRequests
from actors.weights.packed import PackedWeights, SentSample, checksum, sent_samples
from minirl.errors import InputError, RunError
from minirl.training.inputs import OnPolicyItem
from minirl.types import Rollout, SamplingRequest

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput, SamplingParams

# vLLM engine arguments. Scheduling is synchronous, because the logits processor must see every sampled token before the next step.
NGRAM_BLOCKING = {"logits_processors": ["actors.engine.ngram_blocking:NgramBlocking"], "async_scheduling": False}


class RolloutWorker:
    """Samples responses at exactly one weight version. Raises RunError while a weight update is half-way or another version is loaded.

    model, teacher: directories in Hugging Face format. The engine also holds the teacher, if there is one. shared_vocabulary: token ids
    from this one on have probability 0. end_tokens: each ends a response. temperature: applied to both networks before they are mixed
    (None: the config's). max_model_len: tokens of prompt and response together. no_repeat_ngram: n if no n-gram may occur twice in
    prompt and response, 0 for no blocking. With blocking, samples and log-probs no longer follow the distribution of student or mixture.
    capture: room for the teacher's scores of the rollouts; None: the engine has none, and samples without scores only.
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
        capture: ScoreCapture | None = None,
    ):
        self._capture = capture
        self._no_repeat_ngram = no_repeat_ngram
        self._has_teacher, self._end_tokens, self._max_model_len = teacher is not None, end_tokens, max_model_len
        self._transfer = weight_transfer(config, device)
        overrides = _mixture_overrides(model, teacher, max_model_len, shared_vocabulary, temperature or config.temperature, capture)
        self._is_mixed = bool(overrides)
        engine_arguments = {"device": device, "threads": threads, "max_model_len": max_model_len}
        blocking = NGRAM_BLOCKING if no_repeat_ngram else {}
        self._engine = _start(model, config, overrides, self._transfer, **engine_arguments, **blocking)
        self._sampling: tuple[float, bool] | None = None  # share and capture as the engine has them; None: unknown until the first call
        self._version: int | None = 0  # None during an update
        self._from_disk, self._updating = True, False
        self._sent: list[SentSample] = []

    def begin_weights(self) -> None:
        """Starts a weight update. From here on no version is loaded. Raises RunError if another update is half-way."""
        if self._updating:
            raise RunError("a weight update was begun while another one is half-way; start the rollout worker again")
        self._version, self._from_disk, self._updating, self._sent = None, False, True, []
        self._engine.start_weight_update()

    def forget_weights(self) -> None:
        """Goes back to version 0 for another stage. Until weights are published, only the teacher alone can be sampled."""
        self._version, self._from_disk = 0, False

    def load_bucket(self, bucket: PackedWeights, expected_checksum: int) -> None:
        """Loads one bucket. Raises RunError if its checksum is not the sender's; the update then stays half-way."""
        self._require_update("load_bucket")
        actual_checksum = checksum(bucket)
        if actual_checksum != expected_checksum:
            first_name = bucket.specs[0][0] if bucket.specs else "nothing"
            raise RunError(
                f"a bucket of weights (from {first_name} on) changed in transit: its checksum is {actual_checksum}, not "
                f"{expected_checksum} as sent; resume from the last checkpoint"
            )
        self._sent += sent_samples(bucket)
        self._engine.update_weights({"update_info": {"bucket": bucket}})

    def finish_weights(self, version: int, sent: list[SentSample] | None = None) -> None:
        """Ends the update: compares the loaded weights with those that were sent, resets the prefix cache, records the version.

        sent: the sender's samples of the weights that `receive` received, because NCCL's data does not pass through this process.

        Raises RunError if loaded and sent weights differ, or if the sender left out the output head.
        """
        self._require_update("finish_weights")
        self._sent += sent or []
        self._engine.finish_weight_update()
        self._compare_loaded()
        self._reset_prefix_cache()
        self._updating, self._version = False, version

    def join_transfer(self, init_info: dict[str, Any]) -> None:
        """Joins vLLM's own weight transfer (nccl); `actors.weights.nccl` opens its sender. Needs GPUs, so the tests do not run it."""
        self._engine.init_weight_transfer_engine({"init_info": init_info})

    def receive(self, update_info: dict[str, Any]) -> None:
        """Receives all weights through vLLM's own transfer, between `begin_weights` and `finish_weights`. Needs GPUs, too."""
        self._require_update("receive")
        self._engine.update_weights({"update_info": update_info})

    def sample(self, requests: list[SamplingRequest], **options: Any) -> list[Rollout] | list[OnPolicyItem]:
        """Samples one response per request, in the order of the requests. options: those of `sample_each`."""
        rollouts = dict(pair for pairs in self.sample_each(list(enumerate(requests)), **options) for pair in pairs)
        return [rollouts[position] for position in range(len(requests))]

    def sample_each(
        self,
        requests: list[PositionedRequest],
        queued: QueuedRequests | None = None,
        *,
        teacher_share: float,
        max_response_tokens: int,
        weight_version: int | None,
        ignore_end_tokens: bool = False,
        greedy: bool = False,
        with_scores: bool = False,
    ) -> Iterator[list[tuple[int, Rollout | OnPolicyItem]]]:
        """Samples one response per request. Yields lists of rollouts that finished together, each with the position of its request.

        queued: gives more requests whenever the engine computes all that it has. They join its running batch.
        teacher_share: the mixture's a in [0, 1]. weight_version: the version that must be loaded; None means the weights on disk.
        ignore_end_tokens: no token ends a response, so that all have the same length; for benchmarks. greedy: takes the most likely token
        each time; the log-probs stay those of the distribution. with_scores: yields an `OnPolicyItem` with the teacher's scores for each
        rollout; the teacher then computes every token, also at share 0.
        Raises RunError if another version is loaded, or if prompt and response do not fit the engine or the room for scores.
        """
        self._require_version(weight_version)
        if teacher_share < 1 and self._version == 0 and not self._from_disk:
            raise RunError("the engine still holds the student of an earlier stage; publish weights before sampling from it")
        self._set_sampling(teacher_share, max_response_tokens if with_scores else 0)
        # Cached prompts may come from older weights, or lack the part of a network that was skipped at the time. Even valid ones would
        # make results depend on earlier calls: a call that finds cached prompts differs in the last bits from one that does not.
        self._reset_prefix_cache()
        engine, ends = self._engine.llm_engine, () if ignore_end_tokens else self._end_tokens
        under_way: dict[int, tuple[SamplingRequest, str]] = {}  # by position: the request, and vLLM's own id of it
        while requests or under_way or (queued and queued.are_left):
            self._require_fit(requests, max_response_tokens)
            for position, request in requests:
                prompt = {"prompt_token_ids": request.prompt_tokens.tolist()}
                sampling = self._sampling_params(request, max_response_tokens, ends, greedy)
                under_way[position] = request, engine.add_request(str(position), prompt, sampling)
            finished = {int(output.request_id): output for output in engine.step() if output.finished} if under_way else {}
            if finished:
                ended, engine_ids = zip(*(under_way.pop(position) for position in finished), strict=True)
                rollouts = [self._rollout(request, output) for request, output in zip(ended, finished.values(), strict=True)]
                yield list(zip(finished, self._scored(rollouts, engine_ids) if with_scores else rollouts, strict=True))
            requests = queued.take(len(under_way)) if queued and has_room(self._engine) else []

    def close(self) -> None:
        """Stops the engine and the processes that it started."""
        stop_engine(self._engine)

    def _sampling_params(
        self, request: SamplingRequest, max_response_tokens: int, end_tokens: tuple[int, ...], greedy: bool
    ) -> "SamplingParams":
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        # ignore_eos: only `end_tokens` end a response, not also the end token of the model's directory.
        return SamplingParams(
            temperature=0.0 if greedy else 1.0, top_p=1.0, seed=request.seed, max_tokens=max_response_tokens,
            stop_token_ids=list(end_tokens), ignore_eos=True, logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args={"no_repeat_ngram": self._no_repeat_ngram} if self._no_repeat_ngram else None,
        )  # fmt: skip

    def _rollout(self, request: SamplingRequest, output: "RequestOutput") -> Rollout:
        response = output.outputs[0]
        if response.finish_reason not in ("stop", "length"):
            raise RunError(f"vLLM ended the response to prompt {request.prompt_index} with {response.finish_reason!r}")
        tokens = np.array(response.token_ids, np.int64)
        logprobs = [step[token].logprob for step, token in zip(response.logprobs, response.token_ids, strict=True)]
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

    def _scored(self, rollouts: list[Rollout], engine_ids: Sequence[str]) -> list[OnPolicyItem]:
        finished = [(name, rollout.response_tokens.tolist()) for name, rollout in zip(engine_ids, rollouts, strict=True)]
        scores = self._engine.collective_rpc("take_scores", args=(finished,))[0]
        return [OnPolicyItem(rollout, score) for rollout, score in zip(rollouts, scores, strict=True)]

    def _set_sampling(self, teacher_share: float, scored_tokens: int) -> None:
        """scored_tokens: the longest response whose scores are captured; 0 captures none."""
        if teacher_share > 0 and not self._has_teacher:
            raise RunError(
                f"sampling was requested with teacher share {teacher_share}, but this engine holds no teacher; start it with one"
            )
        if not 0 <= teacher_share <= 1:
            raise RunError(f"the teacher share {teacher_share} is not between 0 and 1")
        room = self._capture.response_tokens if self._capture else 0
        if scored_tokens > room:
            raise RunError(
                f"scores of responses of {scored_tokens} tokens were requested, but this engine has room for {room}; start it with more"
            )
        sampling = (teacher_share, scored_tokens > 0)
        if self._is_mixed and sampling != self._sampling:
            self._engine.collective_rpc("set_sampling", args=sampling)
        self._sampling = sampling

    def _reset_prefix_cache(self) -> None:
        if not self._engine.reset_prefix_cache():
            raise RunError("vLLM could not reset its prefix cache, because requests are still running; wait for them first")

    def _require_fit(self, requests: list[PositionedRequest], max_response_tokens: int) -> None:
        longest = max((len(request.prompt_tokens) for _, request in requests), default=0)
        if longest + max_response_tokens > self._max_model_len:
            raise RunError(
                f"a prompt of {longest} and a response of {max_response_tokens} tokens exceed the engine's {self._max_model_len}; "
                "shorten one of them"
            )

    def _require_update(self, call: str) -> None:
        if not self._updating:
            raise RunError(f"{call} was called outside of a weight update; begin_weights comes first")

    def _require_version(self, version: int | None) -> None:
        if self._updating:
            raise RunError("sampling was requested while a weight update is half-way; finish_weights comes first")
        if version is None and not self._from_disk:
            raise RunError(f"sampling was requested with the weights on disk, but version {self._version} is loaded")
        if version is not None and version != self._version:
            raise RunError(f"sampling was requested with weight version {version}, but version {self._version} is loaded")

    def _compare_loaded(self) -> None:
        for head_compared, different in self._engine.collective_rpc("compare_loaded", args=(self._sent,)):
            if different:
                raise RunError(
                    f"after loading, {len(different)} tensors of the rollout engine differ from those sent: {different[0]} first"
                )
            if not head_compared:
                raise RunError("the weights that were sent lack the output head, or the embedding that it is tied to; send all weights")


def weight_transfer(config: RolloutConfig, device: str) -> str:
    """Chooses how new weights reach the engine: "host_memory" or "nccl". Raises InputError for nccl without GPUs."""
    if config.weight_transfer == "nccl" and device != "cuda":
        raise InputError("rollout.weight_transfer: nccl moves weights between GPUs and this run has none; set it to auto or host_memory")
    if config.weight_transfer != "auto":
        return config.weight_transfer
    return "nccl" if device == "cuda" else HOST_MEMORY_TRANSFER


def _mixture_overrides(
    model: str, teacher: str | None, max_model_len: int, shared_vocabulary: int, temperature: float, capture: ScoreCapture | None
) -> dict[str, Any]:
    """vLLM's hf_overrides for our mixture model. Empty if the student's own model class samples the same distribution."""
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
        "capture": capture and asdict(capture),
    }
    return {"architectures": ["MixtureForCausalLM"], "mixture": settings}


def _start(model: str, config: RolloutConfig, overrides: dict[str, Any], transfer: str, *, device: str, **arguments: Any) -> "LLM":
    from vllm.config import WeightTransferConfig

    engine = start_engine(
        model,
        config,
        mixed=bool(overrides),
        device=device,
        overrides=overrides,
        logprobs_mode="processed_logprobs",
        enable_prefix_caching=True,
        skip_tokenizer_init=True,
        weight_transfer_config=WeightTransferConfig(backend=NCCL_TRANSFER if transfer == "nccl" else HOST_MEMORY_TRANSFER),
        **arguments,
    )
    if transfer == HOST_MEMORY_TRANSFER:
        engine.init_weight_transfer_engine({"init_info": {}})
    return engine
