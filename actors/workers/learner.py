"""The learner: trains the student under DeepSpeed; each worker process holds one rank.

Only this file, `gathered_weights` and `rendezvous` call DeepSpeed.
"""

import math
import random
import warnings
from collections.abc import Iterator
from pathlib import Path

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from torch import Tensor
from transformers.integrations import HfDeepSpeedConfig

from actors.config import LearnerSetup
from actors.weights.packed import PackedWeights, pack
from actors.workers.attention_choice import choose_attention, choose_packing
from actors.workers.baseline_timing import baseline_seconds, head_seconds
from actors.workers.deepspeed_config import deepspeed_config
from actors.workers.gathered_weights import export, merged_weights, weight_shapes
from actors.workers.sanity_checks import check_behavior_match, check_finite, check_teacher_match
from minirl.errors import RunError
from minirl.model.attention import use_kernel
from minirl.model.loading import load_causal_lm
from minirl.model.lora import attach_adapters, trainable_parameters
from minirl.model.microbatch import make_microbatch
from minirl.model.output_head import OutputHead, check_head
from minirl.model.student import StudentModule
from minirl.model.teacher_ensemble import read_teacher
from minirl.model.token_diagnostics import SequenceDiagnostics
from minirl.training.inputs import OnPolicyItem, SupervisedItem
from minirl.training.update import (
    LossDivisors,
    Sums,
    UpdateStep,
    add_sums,
    diagnose,
    frozen_advantages,
    on_policy_loss,
    soft_update_loss,
    supervised_loss,
)


class Learner:
    """One rank of the learner. Methods that use the model are collective: all ranks must call them in the same order."""

    def __init__(self, setup: LearnerSetup):
        self.setup = setup
        self.rank, self.workers = dist.get_rank(), dist.get_world_size()
        torch.set_num_threads(setup.threads)
        torch.use_deterministic_algorithms(setup.deterministic)
        # Only the output heads multiply in float32. Their bfloat16 inputs are exact under "medium", so the forward pass loses nothing.
        torch.set_float32_matmul_precision("medium" if setup.config.dtype == "bfloat16" else "highest")
        torch.utils.deterministic.fill_uninitialized_memory = False  # would fill DeepSpeed's gigabyte buffers at every update
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(setup.seed % 2**32 + self.rank)
        self.teacher_head = None
        if setup.teacher is not None:
            self.teacher_head = read_teacher(setup.teacher, setup.teacher_weights, setup.vocabulary, setup.device)
        self.load_model(setup.model)

    def load_model(self, path: str) -> None:
        """Builds the student from a model directory, and an optimizer if the setup trains."""
        setup, config = self.setup, self.setup.config
        settings = deepspeed_config(config, setup.training)
        sharded_loading = HfDeepSpeedConfig(settings) if config.zero_stage == 3 else None
        # The checks below run the model, and only its own device has every kernel that it may use.
        device = None if sharded_loading else setup.device
        model = load_causal_lm(path, getattr(torch, config.dtype), dropout=setup.dropout, device=device)
        # While this object lives, transformers shards every model that it builds; but `export` builds one on a single rank.
        del sharded_loading
        if config.zero_stage < 3:
            check_head(model, "student")
        if setup.lora is not None:
            attach_adapters(model, setup.lora, seed=setup.seed, dropout=setup.dropout)
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        module = StudentModule(model, vocabulary=setup.vocabulary, chunk_tokens=config.head_chunk_tokens, teacher_head=self.teacher_head)
        if setup.training is None and config.zero_stage < 3:
            self.engine = module.to(setup.device)
        else:
            buffers = {name: buffer for name, buffer in module.named_buffers() if buffer.is_floating_point()}
            self.engine, *_ = deepspeed.initialize(model=module, config=settings, model_parameters=trainable_parameters(module))
            _restore_buffers(module, buffers)
            _undo_first_step(self.engine.optimizer)
        self.model, self.module = model, module
        self.attention, attention_warnings = choose_attention(model, config, setup.device, setup.longest_sequence)
        module.attention_by_width = (config.attention, setup.device, self.attention) == ("auto", "cpu", "sdpa")
        module.packed, packing_warnings = choose_packing(model, config, self.attention)
        self.notices = [*attention_warnings, *packing_warnings]  # for the driver, whose output the user sees
        for notice in self.notices:
            warnings.warn(notice, stacklevel=2)

    def update(self, step: UpdateStep, on_policy: list[list[OnPolicyItem]], supervised: list[list[SupervisedItem]]) -> dict[str, float]:
        """Takes one optimizer step over this worker's micro-batches. Returns this worker's sums; `grad_norm` is global.

        Raises RunError before the weights change if the loss is not finite, if the rebuilt teacher differs from the teacher engine, or
        (with `step.check_behavior`) if the engine did not sample with the published weights.
        """
        losses = [lambda items=items: self._on_policy_loss(items, step) for items in on_policy]
        losses += [lambda items=items: self._supervised_loss(items, step.divisors) for items in supervised]
        for group in self.engine.optimizer.param_groups:
            group["lr"] = step.learning_rate
        total: Sums = {}
        is_finite = torch.ones((), dtype=torch.bool, device=self.setup.device)  # read only once, at the end: each read would stall a GPU
        for number, loss_of in enumerate(losses):
            self.engine.set_gradient_accumulation_boundary(number == len(losses) - 1)
            loss, sums = loss_of()
            is_finite &= torch.isfinite(loss.detach())
            # DeepSpeed averages gradients over workers, but the loss is already divided by the counts of the whole step.
            self.engine.backward(loss * self.workers)
            add_sums(total, sums)
        check_finite(is_finite, step, "loss", self.setup.device)
        check_teacher_match(total, self.setup)
        if step.check_behavior:
            check_behavior_match(total, step, self.setup)
        norm = self._step(step)
        return {name: float(value) for name, value in total.items()} | {"grad_norm": norm}

    def frozen_advantages(self, microbatches: list[list[OnPolicyItem]]) -> list[np.ndarray]:
        """The gradient-free pass of `credit: frozen`: advantages before whitening, in the order of the micro-batches."""
        advantages, total = [], {}
        for items in microbatches:
            rows, sums = frozen_advantages(
                self.engine, items, self.setup.objective, device=self.setup.device, temperature=self.setup.temperature
            )
            advantages += rows
            add_sums(total, sums)
        check_teacher_match(total, self.setup)
        return advantages

    @torch.no_grad()
    def supervised_sums(self, microbatches: list[list[SupervisedItem]]) -> dict[str, float]:
        """Validation: the summed loss (`supervised`) and the number of targets (`supervised_tokens`), without dropout."""
        total: Sums = {}
        self.engine.eval()
        for items in microbatches:
            add_sums(total, self._supervised_loss(items, LossDivisors())[1])
        self.engine.train()
        check_teacher_match(total, self.setup)
        return {name: float(value) for name, value in total.items()}

    @torch.no_grad()
    def diagnostics(self, microbatches: list[list[SupervisedItem]], top_k: int) -> list[SequenceDiagnostics]:
        """Diagnostics of each sequence at the setup's temperature, in the order of the micro-batches. top_k: as in
        `SequenceDiagnostics.overlap`.
        """
        diagnostics, total = [], {}
        self.engine.eval()
        for items in microbatches:
            rows, gap = diagnose(self.engine, items, self.setup.device, top_k, self.setup.temperature)
            diagnostics += rows
            add_sums(total, gap)
        self.engine.train()
        check_teacher_match(total, self.setup)
        return diagnostics

    def baseline_seconds(self, microbatches: list[list[OnPolicyItem]]) -> float | None:
        """For benchmarks: seconds of plain PyTorch over the same micro-batches, with a fresh copy of the student. None under ZeRO 3."""
        setup = self.setup
        if setup.config.zero_stage == 3:
            return None
        model = load_causal_lm(setup.model, getattr(torch, setup.config.dtype), dropout=setup.dropout, device=setup.device)
        use_kernel(model, self.attention)
        if setup.lora is not None:
            attach_adapters(model, setup.lora, seed=setup.seed, dropout=setup.dropout)
        return baseline_seconds(model, [make_microbatch([item.sequence for item in items], setup.device) for items in microbatches])

    def head_seconds(self, tokens: int) -> dict[str, float] | None:
        """For benchmarks: `baseline_timing.head_seconds`. None under ZeRO 3, and unless the learner has exactly one teacher."""
        if self.setup.config.zero_stage == 3 or not isinstance(self.teacher_head, OutputHead):
            return None
        return head_seconds(self.module.head, tokens)

    def weight_shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Name and full shape of each of the student's weights, in the order in which they are published."""
        return weight_shapes(self.model)

    def gathered_weights(self, dtype: str) -> Iterator[tuple[str, Tensor]]:
        """Yields the student's weights under their Hugging Face names, on the learner's device, on every rank."""
        sharded = self.setup.config.zero_stage == 3  # then the gathered tensor is freed, so yield a copy
        for named in self._merged_buckets():
            for name, tensor in named:
                yield name, tensor.to(getattr(torch, dtype), copy=sharded)

    def packed_weights(self, dtype: str) -> Iterator[PackedWeights]:
        """Yields the student's weights in buckets, under their Hugging Face names, on rank 0. The other ranks only help to gather."""
        for named in self._merged_buckets():
            if self.rank == 0:
                yield from pack(((name, tensor.to(getattr(torch, dtype))) for name, tensor in named), self._bucket_bytes)

    def export(self, source: str, directory: str) -> None:
        """Writes the student as a Hugging Face directory, with the config and tokenizer of `source`.

        With LoRA the directory also holds the adapter, whose base model is `source`.
        """
        export(
            self.model,
            self.setup.lora,
            source,
            directory,
            bucket_bytes=self._bucket_bytes,
            sharded=self.setup.config.zero_stage == 3,
            writes=self.rank == 0,
        )
        dist.barrier()

    def save(self, directory: str) -> None:
        """Saves optimizer, trained weights and random states of this rank."""
        has_frozen_weights = self.setup.lora is not None  # they never change, so the model directory suffices
        self.engine.save_checkpoint(directory, tag="learner", save_latest=False, exclude_frozen_parameters=has_frozen_weights)
        states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
        if self.setup.device == "cuda":
            states["cuda"] = torch.cuda.get_rng_state()
        torch.save(states, Path(directory) / f"random-{self.rank}.pt")

    def load(self, directory: str) -> None:
        """Restores what `save` wrote, with the same number of workers. Raises RunError if DeepSpeed cannot."""
        loaded, _ = self.engine.load_checkpoint(directory, tag="learner", load_module_strict=self.setup.lora is None)
        if loaded is None:
            raise RunError(f"DeepSpeed could not load the checkpoint in {directory}; delete it to resume from the previous checkpoint")
        states = torch.load(Path(directory) / f"random-{self.rank}.pt", weights_only=False)
        random.setstate(states["python"])
        np.random.set_state(states["numpy"])
        torch.set_rng_state(states["torch"])
        if self.setup.device == "cuda":
            torch.cuda.set_rng_state(states["cuda"])

    def _on_policy_loss(self, items: list[OnPolicyItem], step: UpdateStep) -> tuple[Tensor, Sums]:
        setup = self.setup
        if setup.soft is not None:
            return self._soft_loss(items, step.divisors.on_policy)
        return on_policy_loss(
            self.engine,
            items,
            setup.objective,
            step.divisors,
            device=setup.device,
            temperature=setup.temperature,
            teacher_share=step.teacher_share,
        )

    def _supervised_loss(self, items: list[SupervisedItem], divisors: LossDivisors) -> tuple[Tensor, Sums]:
        if self.setup.soft is not None:
            return self._soft_loss(items, divisors.supervised)
        objective = self.setup.objective
        coefficient, kd_share = (objective.pretrain_coefficient, objective.pretrain_kd_share) if objective else (1.0, 0.0)
        return supervised_loss(self.engine, items, divisors, device=self.setup.device, coefficient=coefficient, kd_share=kd_share)

    def _soft_loss(self, items: list[OnPolicyItem] | list[SupervisedItem], divisor: float) -> tuple[Tensor, Sums]:
        setup = self.setup
        return soft_update_loss(self.engine, items, setup.soft, divisor, device=setup.device, temperature=setup.temperature)

    def _step(self, step: UpdateStep) -> float:
        """Takes the optimizer's step. Returns the global norm of the gradient before clipping. Raises RunError if it is not finite."""
        plain_optimizer = not hasattr(self.engine.optimizer, "_global_grad_norm")
        if plain_optimizer:  # float32 at ZeRO 0: DeepSpeed does not wrap torch's optimizer and reports no norm
            norm = float(torch.nn.utils.get_total_norm([p.grad for p in self.engine.module.parameters() if p.grad is not None]))
            check_finite(math.isfinite(norm), step, "gradient norm", self.setup.device)
        self.engine.step()
        if not plain_optimizer:
            norm = float(self.engine.get_global_grad_norm())
            check_finite(math.isfinite(norm), step, "gradient norm", self.setup.device)
        return norm

    def _merged_buckets(self) -> Iterator[list[tuple[str, Tensor]]]:
        return merged_weights(self.model, self._bucket_bytes, sharded=self.setup.config.zero_stage == 3)

    @property
    def _bucket_bytes(self) -> int:
        return self.setup.config.publish_bucket_mib * 2**20


def _restore_buffers(module: torch.nn.Module, buffers: dict[str, Tensor]) -> None:
    """Undoes DeepSpeed's rounding of buffers to bfloat16.

    Rotary frequencies are float32 in every engine. With rounded ones the learner's log-probs would be 0.01 nats off.
    """
    for name, buffer in buffers.items():
        owner, _, attribute = name.rpartition(".")
        device = next(module.parameters()).device
        setattr(module.get_submodule(owner), attribute, buffer.to(device))


def _undo_first_step(optimizer: object) -> None:
    """Undoes the step with zero gradients that DeepSpeed's bfloat16 optimizer takes at ZeRO 0 when it is built, to allocate its state.

    That step decays the float32 weights and counts in Adam's bias correction: the first update had 0.74 of its size. torch allocates the
    state again at the first real step.
    """
    if isinstance(optimizer, FP16_UnfusedOptimizer):
        optimizer.optimizer.state.clear()
        optimizer.refresh_fp32_params()
