"""Derived seeds: in range, the same on every machine, and different for every stream and response."""

from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from minirl.seeds import derive_seed, sampling_seed

indices = st.integers(0, 2**40)


@given(indices, indices, indices, indices)
def test_a_seed_fits_every_generator_and_comes_out_the_same_again(run, iteration, prompt, sample):
    seed = sampling_seed(run, iteration, prompt, sample)
    assert 0 <= seed < 2**63
    assert seed == sampling_seed(np.int64(run), np.int64(iteration), np.int64(prompt), np.int64(sample))


def test_no_two_responses_of_a_run_share_a_seed():
    seeds = [sampling_seed(*key) for key in product(range(2), range(20), range(50), range(4))]
    assert len(set(seeds)) == len(seeds)


def test_streams_differ_even_if_their_names_join_to_the_same_text():
    seeds = {
        derive_seed(1, "data"),
        derive_seed(1, "corpus"),
        derive_seed(1, "data", 1),
        derive_seed(1, "data1"),
        derive_seed(1, "data", "1"),
    }
    assert len(seeds) == 5


def test_seeds_do_not_change_from_one_process_or_release_to_the_next():
    # The output of printf '[7, "sampling", 1, 2, 3]' | b2sum -l 64, without its lowest bit.
    assert sampling_seed(7, 1, 2, 3) == 0xD8D3200982F799E2 >> 1
