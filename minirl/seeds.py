"""Seeds of all random streams, hashed from the run's seed, so that no stream depends on the worker count."""

import hashlib
import json


def derive_seed(run_seed: int, *names: str | int) -> int:
    """A seed in [0, 2**63) for the stream called `names`. Adding instead of hashing would make neighbouring streams coincide."""
    key = json.dumps([int(run_seed), *(name if isinstance(name, str) else int(name) for name in names)])
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1


def sampling_seed(run_seed: int, iteration: int, prompt_index: int, sample_index: int) -> int:
    """The seed of one response in [0, 2**63). It depends neither on the worker that samples it nor on the rest of its batch."""
    return derive_seed(run_seed, "sampling", iteration, prompt_index, sample_index)
