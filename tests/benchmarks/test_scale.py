"""The smallest scale simulation: it runs, and its results agree with the known sleep times."""

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
def results(ray_cluster) -> dict[tuple[int, int], ScaleResult]:
    """Results by workers and staleness. With 8 workers the payloads have their real shapes."""
    with Simulation({"rollout": 2, "teacher": 1, "learner": 1}) as simulation:
        settings = [ScaleSetting(workers, 4, "sampling", staleness, SECONDS) for workers, staleness in ((16, 0), (16, 1), (8, 1))]
        return {(setting.workers, setting.max_staleness): simulation.measure(setting) for setting in settings}


@pytest.mark.slow
def test_the_real_driver_runs_with_sleeping_workers(results):
    for result in results.values():
        assert max(result.alone.values()) == result.alone["rollout"] == SECONDS
        assert result.efficiency == SECONDS / result.iteration > 0
        assert result.driver_cpu > 0 and 0 <= result.driver_alone < result.iteration
        assert all(0 <= share < 1 for share in result.idle.values())
        assert all(0 <= median <= high for median, high in result.delay.values())
    sequential, overlapped = results[16, 0], results[16, 1]
    assert sequential.iteration >= sequential.alone["rollout"] + sequential.alone["learner"]  # each waits for the other
    assert overlapped.iteration < sequential.iteration


@pytest.mark.slow
def test_payloads_of_real_shape_have_the_computed_size(results):
    assert results[8, 1].stored == pytest.approx(results[8, 1].real)
    assert results[16, 1].stored < 0.5 * results[16, 1].real


@pytest.mark.slow
def test_tables_fit_and_files_hold_the_ratios(results, tmp_path):
    console = Console(width=80, record=True)
    result = results[16, 1]
    delay = {"rollout": (0.167, 1.956), "teacher": (0.008, 0.063), "learner": (0.259, 1.474)}
    largest = replace(result, scale=replace(result.scale, workers=1024), iteration=102.76, delay=delay)  # measured values
    for table in tables([*results.values(), largest]):
        console.print(rich_table(table))
    assert "…" not in console.export_text()
    save(tmp_path, list(results.values()))
    report = json.loads((tmp_path / "scale.json").read_text())
    assert [row["efficiency"] for row in report["found"]] == [result.efficiency for result in results.values()]
    assert report["growth"] is not None and "efficiency with overlap" in (tmp_path / "scale.md").read_text()


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (5, [2, 1, 1, 1]), (16, [4, 4, 4, 2, 1, 1])])
def test_rollouts_come_in_object_batches_and_the_last_ones_singly(count, sizes):
    """By the real Ray worker: a batch holds at most 4 and at most half of the remaining rollouts. Its summaries follow each batch."""
    worker = SleepingRolloutWorker()
    worker.configure(ScaleSetting(8, count, "sampling", 1, 0.01).sleep_times)
    requests = [(number, SamplingRequest(np.arange(4), 0, number, 77 * number)) for number in range(count)]
    values = list(worker.sample_batches(requests, None, {"teacher_share": 0.0, "max_response_tokens": 16, "weight_version": 1}))
    batches, summaries_by_batch = values[::2], [summaries for _, summaries in values[1::2]]
    assert [len(batch) for batch in batches] == sizes
    assert sorted(position for summaries in summaries_by_batch for position, _ in summaries) == list(range(count))
    for rollout, (position, summary) in zip(chain(*batches), chain(*summaries_by_batch), strict=True):
        assert (rollout.sample_index, rollout.summary) == (position, summary)


def test_growth_is_the_exponent_over_sizes():
    """Four times the rollouts for eight times the seconds: the power 3/2."""
    base = ScaleResult(ScaleSetting(8, 4, "sampling", 1, 1.0), 1.0, {}, {}, 1.0, 2.0, 0.0, {}, {}, 0.0, 0.0)
    assert growth([base, replace(base, scale=ScaleSetting(32, 4, "sampling", 1, 1.0), driver_cpu=16.0)]) == pytest.approx(1.5)
    assert growth([base]) is None


def test_covered_seconds_count_every_moment_once():
    assert covered_seconds([(0.0, 2.0), (1.0, 3.0), (1.5, 1.8), (5.0, 6.0), (9.0, 7.0)]) == 4.0


def test_real_bytes_by_hand():
    """One prompt token and two response tokens of 8 bytes each. A response token has a log-prob of 4 bytes, 8 bytes of teacher values and
    a hidden state of 1,600 numbers of 2 bytes. The weights have 248,879,616 bytes."""
    assert real_bytes(3.0, 2.0) == 3 * 8 + 2 * 4 + 2 * (8 + 3200) + 248_879_616
