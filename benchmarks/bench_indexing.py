"""Indexing of a hit of 250 spots, with and without a cell, and of what has no lattice: `pytest benchmarks/bench_indexing.py`."""

from __future__ import annotations

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from tests.algorithms.indexing.generator import basis_of, beam, detector, lattice_spots, random_pixels, random_rotation, table
from xfelproc.algorithms.indexing import Index
from xfelproc.models.frames import CellTarget
from xfelproc.models.tables import SpotTable

TARGETS = {
    "tetragonal": ((79.1, 79.1, 38.0, 90.0, 90.0, 90.0), "P 43 21 2", "P"),
    "c-centred": ((61.4, 122.6, 168.0, 90.0, 90.0, 90.0), "C 2 2 21", "C"),
    "triclinic": ((41.0, 52.0, 63.0, 75.0, 82.0, 68.0), "P 1", "P"),
}


def hits(cell: tuple[float, ...], centring: str, n: int = 20) -> list[SpotTable]:
    rng = np.random.default_rng(1)
    return [table(lattice_spots(basis_of(cell) @ random_rotation(rng).T, centring, rng, 250)[0], rng) for _ in range(n)]


def run(benchmark: BenchmarkFixture, frames: list[SpotTable], target: CellTarget) -> int:
    """Index a frame a round, each in its turn; return how many of all have a lattice."""
    index, place, source = Index(), detector(), beam()
    found = sum(bool(index.index(spots, place, source, target).lattices) for spots in frames)
    turn = iter(range(10**9))
    benchmark.pedantic(
        lambda: index.index(frames[next(turn) % len(frames)], place, source, target), rounds=5 * len(frames), warmup_rounds=3
    )
    return found


@pytest.mark.parametrize("name", list(TARGETS))
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_hit(benchmark: BenchmarkFixture, name: str, known: bool) -> None:
    cell, group, centring = TARGETS[name]
    target = CellTarget(cell, group) if known else CellTarget()
    assert run(benchmark, hits(cell, centring), target) == 20


def test_no_lattice(benchmark: BenchmarkFixture) -> None:
    rng = np.random.default_rng(2)
    frames = [table(random_pixels(rng, 100), rng) for _ in range(10)]
    assert run(benchmark, frames, CellTarget(*TARGETS["tetragonal"][:2])) == 0
