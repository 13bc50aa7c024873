"""Tells transformers which tokens of a packed row belong together, so that no forward pass reads that from the device."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel, masking_utils

from minirl.model.microbatch import TokenRows


@contextmanager
def known_sequences(sequence_ids: Tensor | None) -> Iterator[None]:
    """Within it, attention masks of transformers keep the sequences of `sequence_ids` [1, L] apart; None: each row is one sequence.

    transformers derives the same ids from the positions, and then reads from the device whether there are several. That wait, in each
    pass, comes after everything queued before it. It takes no argument that would spare it, so this replaces the function that asks.
    """
    derived_from_positions = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: sequence_ids
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = derived_from_positions


def flash_arguments(model: PreTrainedModel, rows: TokenRows) -> dict[str, Tensor | int]:
    """For flash attention, where the sequences start: without these arguments it reads that from the device in every layer.

    Empty for other kernels, and for a family whose model does not pass them on to its attention.
    """
    passes_on = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(model.base_model.forward).parameters.values())
    if model.config._attn_implementation != "flash_attention_2" or not passes_on:
        return {}
    boundaries = rows.boundaries.to(torch.int32)
    return {"cu_seq_lens_q": boundaries, "cu_seq_lens_k": boundaries, "max_length_q": rows.longest, "max_length_k": rows.longest}
