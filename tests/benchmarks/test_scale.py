"""The smallest form of the simulation: it runs, and what it tells is what sleeping workers make known beforehand."""

import json
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from rich.console import Console

from launch.progress import rich_table
from minirl.types import SamplingRequest
from tests.benchmarks.scale import Simulation
from tests.benchmarks.scale_results import ScaleResult, ScaleSetting, covered_seconds, growth, real_bytes, save, tables
from tests.benchmarks.sleeping import SleepingRolloutWorker

SECONDS = 1.0


@pytest.fixture(scope="module")
def found(ray_cluster) -> dict[tuple[int, int], ScaleResult]:
    """By workers and staleness. At 8 workers the payloads have their real shapes."""
    with Simulation({"rollout": 2, "teacher": 1, "learner": 1}) as simulation:
        chosen = [ScaleSetting(workers, 4, "sampling", staleness, SECONDS) for workers, staleness in ((16, 0), (16, 1), (8, 1))]
        return {(scale.workers, scale.max_staleness): simulation.measure(scale) for scale in chosen}


@pytest.mark.slow
def test_the_real_driver_goes_round_with_sleeping_workers(found):
    for one in found.values():
        assert max(one.alone.values()) == one.alone["rollout"] == SECONDS
        assert one.efficiency == SECONDS / one.iteration > 0
        assert one.driver_cpu > 0 and 0 <= one.driver_alone < one.iteration
        assert all(0 <= share < 1 for share in one.idle.values())
        assert all(0 <= median <= high for median, high in one.delay.values())
    in_turn, overlapped = found[16, 0], found[16, 1]
    assert in_turn.iteration >= in_turn.alone["rollout"] + in_turn.alone["learner"]  # each waits for the other
    assert overlapped.iteration < in_turn.iteration


@pytest.mark.slow
def test_payloads_of_real_shape_weigh_what_is_computed(found):
    assert found[8, 1].stored == pytest.approx(found[8, 1].real)
    assert found[16, 1].stored < 0.5 * found[16, 1].real


@pytest.mark.slow
def test_tables_fit_and_files_hold_the_ratios(found, tmp_path):
    console = Console(width=80, record=True)
    one = found[16, 1]
    delay = {"rollout": (0.167, 1.956), "teacher": (0.008, 0.063), "learner": (0.259, 1.474)}
    largest = replace(one, scale=replace(one.scale, workers=1024), iteration=102.76, delay=delay)  # as it was measured
    for table in tables([*found.values(), largest]):
        console.print(rich_table(table))
    assert "…" not in console.export_text()
    save(tmp_path, list(found.values()))
    told = json.loads((tmp_path / "scale.json").read_text())
    assert [one["efficiency"] for one in told["found"]] == [one.efficiency for one in found.values()]
    assert told["growth"] is not None and "efficiency with overlap" in (tmp_path / "scale.md").read_text()


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (5, [2, 1, 1, 1]), (16, [4, 4, 4, 2, 1, 1])])
def test_rollouts_come_in_parcels_and_the_last_ones_singly(count, sizes):
    """By the shell of a run: at most 4 and at most half of what is left; each parcel is followed by what tells of it."""
    worker = SleepingRolloutWorker()
    worker.set(ScaleSetting(8, count, "sampling", 1, 0.01).sleep_times)
    asked = [SamplingRequest(np.arange(4), 0, number, 77 * number) for number in range(count)]
    results = list(worker.sample_batches(asked, {"teacher_share": 0.0, "max_response_tokens": 16, "weight_version": 1}))
    parcels, told = results[::2], [summaries for _, summaries in results[1::2]]
    assert [len(parcel) for parcel in parcels] == sizes
    assert sorted(position for summaries in told for position, _ in summaries) == list(range(count))
    for rollout, (position, summary) in zip(chain(*parcels), chain(*told), strict=True):
        assert (rollout.sample_index, rollout.summary) == (position, summary)


def test_growth_is_the_exponent_over_sizes():
    """Four times the rollouts for eight times the seconds: the power 3/2."""
    base = ScaleResult(ScaleSetting(8, 4, "sampling", 1, 1.0), 1.0, {}, {}, 1.0, 2.0, 0.0, {}, {}, 0.0, 0.0)
    assert growth([base, replace(base, scale=ScaleSetting(32, 4, "sampling", 1, 1.0), driver_cpu=16.0)]) == pytest.approx(1.5)
    assert growth([base]) is None


def test_covered_counts_every_moment_once():
    assert covered_seconds([(0.0, 2.0), (1.0, 3.0), (1.5, 1.8), (5.0, 6.0), (9.0, 7.0)]) == 4.0


def test_real_bytes_by_hand():
    """One token of prompt and two of response: 8 bytes each, 4 of log-prob, 8 of the teacher's and 1,600 states of 2 bytes; 248,879,616."""
    assert real_bytes(3.0, 2.0) == 3 * 8 + 2 * 4 + 2 * (8 + 3200) + 248_879_616
