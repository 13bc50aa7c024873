"""Micro-batches: padding, packing and grids of targets; the division of a step among workers."""

from collections import Counter

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from minirl.model.microbatch import EMPTY_SEQUENCE, make_microbatch, plan_microbatches, restore_order, split_by_tokens
from minirl.types import TokenSequence

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=30)
budgets = st.integers(1, 120)


def sequence(tokens, targets):
    return TokenSequence(np.array(tokens), np.isin(np.arange(len(tokens)), targets))


BATCH = make_microbatch([sequence([7, 8, 9, 5, 2], [3, 4]), sequence([4, 6], [1]), sequence([3, 0, 11, 2], [1, 3])])

# --- one micro-batch ---


def test_padding_goes_to_the_right():
    assert BATCH.padded.input_ids.tolist() == [[7, 8, 9, 5, 2], [4, 6, 0, 0, 0], [3, 0, 11, 2, 0]]
    assert BATCH.counts.tolist() == [2, 1, 2]
    assert BATCH.targets.tolist() == [5, 2, 6, 0, 2]


def test_a_target_is_predicted_by_the_state_one_position_before_it():
    positions = torch.arange(15.0).view(3, 5, 1)
    assert BATCH.padded.predicting_rows(positions).flatten().tolist() == [2, 3, 5, 10, 12]


def test_values_of_targets_become_a_left_aligned_grid():
    assert BATCH.mask().tolist() == [[True, True], [True, False], [True, True]]
    assert BATCH.grid(torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])).flatten().tolist() == torch.tensor([0.1, 0.2, 0.3, 0, 0.4, 0.5]).tolist()


def test_packed_sequences_form_one_row_and_keep_their_targets():
    """Token 0 occurs both as padding and as a real token; lengths distinguish the two."""
    packed = BATCH.packed
    assert packed.input_ids.tolist() == [[7, 8, 9, 5, 2, 4, 6, 3, 0, 11, 2]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 0, 1, 2, 3]]
    assert packed.sequence_ids.tolist() == [[0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2]]
    assert packed.boundaries.tolist() == [0, 5, 7, 11] and BATCH.padded.boundaries.tolist() == [0, 5, 10, 15]
    assert packed.longest == BATCH.padded.longest == 5
    assert packed.predicting_rows(torch.arange(11.0).view(1, 11, 1)).flatten().tolist() == [2, 3, 5, 7, 9]


def test_the_example_of_the_docstring():
    batch = make_microbatch([sequence([4, 6], [1]), sequence([7, 8, 9], [1, 2])])
    padded, packed = (
        [rows.input_ids.tolist(), rows.predicting.tolist(), rows.boundaries.tolist()] for rows in (batch.padded, batch.packed)
    )
    assert padded == [[[4, 6, 0], [7, 8, 9]], [0, 3, 4], [0, 3, 6]]
    assert packed == [[[4, 6, 7, 8, 9]], [0, 2, 3], [0, 2, 5]]
    assert batch.packed.position_ids.tolist() == [[0, 1, 0, 1, 2]] and batch.packed.sequence_ids.tolist() == [[0, 0, 1, 1, 1]]
    assert (batch.targets.tolist(), batch.counts.tolist(), batch.cells.tolist()) == ([6, 8, 9], [1, 2], [0, 2, 3])


def test_the_gradient_passes_through_the_grid():
    values = torch.ones(5, requires_grad=True)
    (BATCH.grid(values) * torch.tensor([[1.0, 2.0], [3.0, 100.0], [4.0, 5.0]])).sum().backward()
    assert values.grad.tolist() == [1, 2, 3, 4, 5]


def test_no_sequences_make_a_batch_without_targets():
    batch = make_microbatch([])
    assert batch.padded.input_ids.shape == (1, len(EMPTY_SEQUENCE.tokens)) and batch.counts.tolist() == [0]
    assert batch.targets.numel() == 0 and batch.mask().shape == (1, 0)
    assert batch.padded.predicting_rows(torch.zeros(1, len(EMPTY_SEQUENCE.tokens), 3)).shape == (0, 3)


# --- the division of an optimizer step ---


@given(lengths, budgets)
def test_micro_batches_respect_the_token_budget_and_hold_every_index(lengths, budget):
    groups = split_by_tokens(range(len(lengths)), lengths, budget)
    assert Counter(i for group in groups for i in group) == Counter(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= budget


@given(lengths, st.integers(1, 6), budgets)
def test_every_worker_gets_equally_many_micro_batches_and_every_item_occurs_once(lengths, workers, budget):
    plan = plan_microbatches(lengths, workers, budget)
    assert len(plan) == workers and len({len(share) for share in plan}) == 1
    assert Counter(i for share in plan for microbatch in share for i in microbatch) == Counter(range(len(lengths)))
    assert any(share[-1] for share in plan), "the last pass is empty on every worker"
    for microbatch in (m for share in plan for m in share if m):
        assert len(microbatch) == 1 or len(microbatch) * max(lengths[i] for i in microbatch) <= budget


@given(lengths, st.integers(1, 5), budgets)
def test_restore_order_returns_results_in_the_order_of_the_items(lengths, workers, budget):
    order = [i for share in plan_microbatches(lengths, workers, budget) for microbatch in share for i in microbatch]
    assert restore_order(order, [lengths[i] for i in order]) == lengths


@given(lengths, st.integers(1, 6))
def test_workers_are_balanced_to_within_one_sequence(lengths, workers):
    loads = [sum(lengths[i] for microbatch in share for i in microbatch) for share in plan_microbatches(lengths, workers, 64)]
    assert max(loads) - min(loads) <= max(lengths)


@given(lengths, st.integers(1, 4), budgets)
def test_the_plan_is_a_function_of_its_arguments(lengths, workers, budget):
    assert plan_microbatches(lengths, workers, budget) == plan_microbatches(tuple(lengths), workers, budget)
