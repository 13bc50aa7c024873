"""Where the learner's update goes: what share is matrix products, at which rate, and what the rest is.

    python -m tests.benchmarks.learner_profile --pair smollm2 --dtype bfloat16 --out runs/learner_profile

One learner in this process takes the updates of a pair of the side-by-side comparison, with random responses of the greatest length. The
parts come from torch.profiler. The least time is that of the FLOPs that the models need (`minirl.bench.model_flops`) at the rate of a large
matrix product, measured in between.
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import AutoConfig

from actors.config import LearnerConfig, LearnerSetup
from actors.node_facts import node_facts
from actors.workers.rendezvous import join_process_group
from minirl.bench.efficiency import percent
from minirl.bench.machine import processor_name, vector_instructions
from minirl.bench.model_flops import read_size, update_flops
from minirl.bench.timing import matmul_rate
from minirl.config.objective import ObjectiveConfig
from minirl.config.stages import SftConfig
from minirl.files import write_json
from minirl.model.microbatch import plan_microbatches
from minirl.model.row_blocks import RowBlocks
from minirl.tables import Table
from minirl.training.inputs import OnPolicyItem
from minirl.training.update import LossDivisors, UpdateStep
from minirl.types import Rollout, numpy_from_tensor
from tests.actors.learners import lengths_of, on_policy_items
from tests.benchmarks.pairs import PAIRS, make_job
from tests.benchmarks.protocol import Job

if TYPE_CHECKING:
    from actors.workers.learner import Learner

UPDATES = 3  # timed, after one to warm up
PRODUCTS, ATTENTION, LOGITS, OPTIMIZER = "matrix products", "attention kernel", "other work on logits", "optimizer step"
OTHER, OUTSIDE = "other operations", "outside of torch's operations"
PARTS = (PRODUCTS, ATTENTION, LOGITS, OPTIMIZER, OTHER, OUTSIDE)
PRODUCT_OPERATIONS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::_linear_pointwise")


@dataclass(frozen=True)
class LearnerProfile:
    """seconds: of the median update. matmul_flops: the measured rate, FLOP/s. needed_flops, product_flops: those that the models need, and
    those of the products that were computed. parts: share of a profiled update, by part.
    """

    seconds: float
    tokens: int
    matmul_flops: float
    needed_flops: float
    product_flops: float
    parts: dict[str, float]

    @property
    def least_share(self) -> float:
        """The share of the update that the needed FLOPs would take at the measured rate (MFU)."""
        return self.needed_flops / self.matmul_flops / self.seconds

    @property
    def product_rate(self) -> float:
        """FLOP/s of the computed products, over the measured rate."""
        return self.product_flops / (self.parts[PRODUCTS] * self.seconds) / self.matmul_flops


def part_of(event: FunctionEvent) -> str:
    """The part that the event's own time belongs to: a product anywhere is a product; other work belongs to the label around it."""
    if event.name in PRODUCT_OPERATIONS:
        return PRODUCTS
    if "scaled_dot_product" in event.name:
        return ATTENTION
    around = event
    while around is not None:
        if around.name in PARTS:
            return around.name
        around = around.cpu_parent
    return OTHER


def shares(events: Iterable[FunctionEvent], seconds: float) -> dict[str, float]:
    """The share of each part in an update of `seconds`. What no event accounts for is outside of torch's operations."""
    microseconds = Counter(dict.fromkeys(PARTS, 0.0))
    for event in events:
        microseconds[part_of(event)] += event.self_cpu_time_total
    parts = {part: microseconds[part] / 1e6 / seconds for part in PARTS}
    return parts | {OUTSIDE: 1 - sum(parts.values())}


def labelled(owner: type, method: str, label: str) -> None:
    """Makes the method an event of its own in a profile."""
    original = getattr(owner, method)

    def call(*arguments, **named):
        with record_function(label):
            return original(*arguments, **named)

    setattr(owner, method, call)


def vocabulary_of(job: Job) -> int:
    return AutoConfig.from_pretrained(job.student).vocab_size


def make_items(job: Job, dtype: str) -> list[OnPolicyItem]:
    """The prompts of the job's first update with random responses of the greatest length, and the teacher's scores."""
    vocabulary, draw = vocabulary_of(job), np.random.default_rng(0)
    rollouts = []
    for index, prompt in enumerate(job.updates[0]):
        response = draw.integers(3, vocabulary, job.max_response_tokens)
        behavior = draw.normal(-4.0, 1.0, len(response)).astype(np.float32)
        rollouts.append(Rollout(np.array(prompt), response, behavior, True, 1, index, 0))
    items = on_policy_items(job.teacher, rollouts, vocabulary)
    if dtype == "float32":
        return items
    return [replace(item, scores=replace(item.scores, hidden=narrowed(item.scores.hidden))) for item in items]


def narrowed(hidden: np.ndarray) -> np.ndarray:
    """The states as a bfloat16 engine would send them."""
    return numpy_from_tensor(torch.from_numpy(hidden).bfloat16())


def make_learner(job: Job, dtype: str, threads: int) -> "Learner":
    """A learner of one rank in this process, whose optimizer step and passes over logits are labelled in a profile."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    join_process_group(store, "127.0.0.1", store.port, rank=0, workers=1, device="cpu", timeout_s=600.0)
    from actors.workers.learner import Learner

    labelled(Learner, "_step", OPTIMIZER)
    labelled(RowBlocks, "statistics", LOGITS)
    labelled(RowBlocks, "gradient", LOGITS)
    setup = LearnerSetup(
        model=job.student, teacher=job.teacher, vocabulary=vocabulary_of(job), config=LearnerConfig(dtype=dtype), device="cpu",
        threads=threads, seed=job.seed, training=SftConfig(learning_rate=job.learning_rate), teacher_dtype=dtype,
        objective=ObjectiveConfig(pretrain_coefficient=0.0),
    )  # fmt: skip
    return Learner(setup)


def measure(job: Job, dtype: str, threads: int) -> LearnerProfile:
    torch.set_num_threads(threads)
    items = make_items(job, dtype)
    learner = make_learner(job, dtype, threads)
    lengths, responses = lengths_of(items), [len(item.rollout.response_tokens) for item in items]
    (plan,) = plan_microbatches(lengths, 1, learner.setup.config.tokens_per_microbatch)
    microbatches = [[items[index] for index in indices] for indices in plan]
    step = UpdateStep(0, 0, job.learning_rate, LossDivisors(sum(responses)))

    def update() -> float:
        began = time.perf_counter()
        learner.update(step, microbatches, [])
        return time.perf_counter() - began

    update()
    seconds = median(update() for _ in range(UPDATES))
    rate = matmul_rate(getattr(torch, dtype), torch.device("cpu"))
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, with_flops=True) as profiler:
        profiled_seconds = update()
    events = profiler.events()
    needed = update_flops(read_size(job.student), read_size(job.teacher).head, list(zip(lengths, responses, strict=True)), frozen=False)
    computed = sum(event.flops or 0 for event in events if part_of(event) == PRODUCTS)
    return LearnerProfile(seconds, sum(lengths), rate, needed, computed, shares(events, profiled_seconds))


def tables(result: LearnerProfile) -> list[Table]:
    least = result.least_share
    parts = [(part, f"{share * result.seconds:.2f} s", percent(share, 1)) for part, share in result.parts.items()]
    rates = [
        ("one update", f"{result.seconds:.2f} s", f"{result.tokens / result.seconds:.0f} tokens/s"),
        ("FLOPs that the models need", f"{result.needed_flops / 1e9:.0f} G", ""),
        ("rate of a large matrix product", f"{result.matmul_flops / 1e9:.0f} GFLOP/s", ""),
        ("needed FLOPs at that rate", f"{least * result.seconds:.2f} s", percent(least, 1)),
        (
            "rate of the computed products",
            f"{result.product_rate * result.matmul_flops / 1e9:.0f} GFLOP/s",
            percent(result.product_rate, 1),
        ),
    ]
    return [Table("Limit", ("", "value", "share"), rates), Table("Parts of an update", ("part", "time", "share"), parts)]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pair", choices=PAIRS, default="smollm2")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], required=True)
    parser.add_argument("--threads", type=int, default=node_facts().usable_cores)
    parser.add_argument("--out", type=Path, default=Path("runs/learner_profile"))
    return parser.parse_args(arguments)


def main() -> None:
    arguments = parse()
    directory = arguments.out.resolve() / f"{arguments.pair}-{arguments.dtype}"
    job = make_job(arguments.pair, 1, arguments.threads, directory, arguments.dtype, 1.0)
    result = measure(job, arguments.dtype, arguments.threads)
    about = {
        "pair": PAIRS[arguments.pair].description,
        "work": f"one update of {len(job.updates[0])} responses of {job.max_response_tokens} tokens, {arguments.dtype}",
        "machine": f"{processor_name()}, {arguments.threads} threads",
        "instructions": " ".join(vector_instructions()),
        "versions": f"torch {torch.__version__}",
        "command": f"python -m tests.benchmarks.learner_profile --pair {arguments.pair} --dtype {arguments.dtype}",
    }
    write_json(directory / "learner_profile.json", {"about": about, **asdict(result), "least_share": result.least_share})
    print("\n".join(table.markdown() for table in tables(result)))
    print(f"written to {directory / 'learner_profile.json'}")


if __name__ == "__main__":
    main()
