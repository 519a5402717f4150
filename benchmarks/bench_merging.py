"""Merging 200 lattices of 1000 observations.

Run with ``pytest benchmarks/bench_merging.py --benchmark-timer=time.process_time``.
"""

from __future__ import annotations

from pytest_benchmark.fixture import BenchmarkFixture

from tests.algorithms.merging.synthetic import CELL, halves, observe
from xfelproc.algorithms.merging import Merge, merge_observations, prepare
from xfelproc.io.exchange.mtz import MtzHeader, merged_mtz


def test_prepare(benchmark: BenchmarkFixture) -> None:
    table, _ = observe(200, 1000, d_min=2.0)
    observations = benchmark(prepare, table, halves(200), Merge())
    assert len(observations) == 200_000


def test_merge(benchmark: BenchmarkFixture) -> None:
    table, _ = observe(200, 1000, d_min=2.0)
    settings = Merge()
    observations = prepare(table, halves(200), settings)
    result = benchmark(merge_observations, observations, CELL, "P 43 21 2", settings)
    assert result.overall["cc_half"][0] > 0.9


def test_write(benchmark: BenchmarkFixture) -> None:
    table, _ = observe(200, 1000, d_min=2.0)
    result = merge_observations(prepare(table, halves(200), Merge()), CELL, "P 43 21 2", Merge())
    assert benchmark(merged_mtz, result.merged, MtzHeader(CELL, result.space_group, 1.3))
