"""Refinement, mosaicity and prediction of a simulated hit of 230 spots: `pytest benchmarks/bench_refinement.py`."""

from __future__ import annotations

import numpy as np
from pytest_benchmark.fixture import BenchmarkFixture

from xfelproc.algorithms.integration import Integrate
from xfelproc.algorithms.refinement import Mosaicity, Refine
from xfelproc.geometry.cells import b_matrix, rotation_matrix
from xfelproc.models.experiment import Beam, Crystal, Detector, Panel, as_matrix
from xfelproc.models.frames import IndexedLattice
from xfelproc.models.tables import SpotTable

DETECTOR = Detector((Panel("p", (1, 0, 0), (0, -1, 0), (-75.0, 75.0, -92.5), (0.075, 0.075), (2000, 2000)),))
BEAM = Beam(1.305)


def hit(n: int = 230) -> tuple[IndexedLattice, SpotTable, Crystal]:
    """Return a lattice 0.2° off, spots scattered by 1/SNR px, and the true crystal."""
    rng = np.random.default_rng(0)
    a = rotation_matrix([0.3, -0.7, 0.4]) @ b_matrix((79.1, 79.1, 38.0, 90, 90, 90))
    crystal = Crystal(as_matrix(a), "P 43 21 2", 1700.0, 0.005)
    predicted = Integrate().predict(crystal, DETECTOR, BEAM, 1.9)
    predicted = predicted.select(np.argsort(-predicted["partiality"])[:n])
    snr = rng.uniform(5, 50, len(predicted))
    spots = SpotTable(
        len(predicted),
        fast=predicted["fast"] + rng.normal(size=len(predicted)) / snr,
        slow=predicted["slow"] + rng.normal(size=len(predicted)) / snr,
        snr=snr,
    )
    start = Crystal(as_matrix(rotation_matrix(np.radians([0.1, 0.1, -0.14])) @ a), "P 43 21 2")
    return IndexedLattice(start, np.zeros(0, np.int64), np.zeros((0, 3), np.int32), -50.0), spots, crystal


def test_refine(benchmark: BenchmarkFixture) -> None:
    lattice, spots, _ = hit()
    refine = Refine()
    result = benchmark(refine.refine, lattice, spots, DETECTOR, BEAM)
    assert result.accepted


def test_mosaicity(benchmark: BenchmarkFixture) -> None:
    rng = np.random.default_rng(1)
    d = rng.uniform(2.0, 10.0, 230)
    psi = np.degrees(rng.uniform(-1, 1, 230) * d / 1500)
    size, _ = benchmark(Mosaicity().fit, psi, d, 1.3, 0.0)
    assert size > 0


def test_predict(benchmark: BenchmarkFixture) -> None:
    _, _, crystal = hit()
    integrate = Integrate()
    table = benchmark(integrate.predict, crystal, DETECTOR, BEAM, 1.9)
    assert len(table) > 200
