"""Indexing ambiguity of 1000 to 100 000 simulated lattices of 60 observations: CPU time, memory, and how many are right.

python benchmarks/ambiguity.py [lattices ...]
"""

from __future__ import annotations

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import resource
import sys
import time

import gemmi
import numpy as np

from xfelproc.algorithms.merging import Merge
from xfelproc.algorithms.merging.ambiguity import Doubt, agreement, resolve
from xfelproc.algorithms.merging.ambiguity_data import Normalized, concatenated, normalized
from xfelproc.algorithms.merging.ambiguity_operators import Settings, find_settings
from xfelproc.algorithms.merging.ambiguity_settings import Ambiguity
from xfelproc.algorithms.merging.observations import Observations, corrected
from xfelproc.algorithms.merging.sample import Beginning, Sample, begin, priorities
from xfelproc.simulation.observations import ObservationSimulator

CASES = {
    "P 63": (60.0, 60.0, 90.0, 90.0, 90.0, 120.0),
    "P 3": (60.0, 60.0, 90.0, 90.0, 90.0, 120.0),
    "P 4": (60.0, 60.0, 90.0, 90.0, 90.0, 90.0),
    "C 1 2 1": (100.0, 50.0, 60.0, 90.0, 90.0 + float(np.degrees(np.arcsin(100.0 / 120.0))), 90.0),
}
HARD = {"misset": 0.03, "wavelength_jitter": 0.002, "cell_spread": 0.001, "outlier_lattices": 0.1, "photons": 500.0}
EACH = 60
STRETCH = 5000


def simulated(simulator: ObservationSimulator, first: int, last: int) -> tuple[Observations, np.ndarray, np.ndarray]:
    """Return 60 observations of each lattice at most, the true settings, and which lattices are outliers."""
    found = simulator.simulate(first, last)
    table, rng = found.table(), np.random.default_rng(first)
    counts = np.bincount(table["lattice"], minlength=last - first)
    order = np.lexsort((rng.random(len(table)), table["lattice"]))
    rank = np.empty(len(table), dtype=np.int64)
    rank[order] = np.arange(len(table)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = table.select(np.flatnonzero(rank < EACH))
    return corrected(chosen, found.crystals.half), found.crystals.setting, found.crystals.outlier


def measure(group: str, n: int, **options: float) -> str:
    settings: Settings = find_settings(CASES[group], group)
    simulator = ObservationSimulator.of(
        cell=CASES[group], space_group=group, d_min=3.0, settings=settings.names, reach=2.0, **options
    )
    parts: list[Normalized] = []
    truth, outliers = [], []
    beginning: Beginning | None = None
    spent = 0.0
    for first in range(0, n, STRETCH):
        observations, setting, outlier = simulated(simulator, first, min(n, first + STRETCH))
        begun = time.process_time()
        if beginning is None:
            sample = Sample.of(observations, priorities(0, observations.n_lattices))
            beginning = begin(sample, 1, gemmi.SpaceGroup(group), Merge())
        parts.append(normalized(observations, beginning, Merge()))
        spent += time.process_time() - begun
        truth.append(setting)
        outliers.append(outlier)
    data, known = concatenated(parts), ~np.concatenate(outliers)
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    found = resolve(data, settings, Ambiguity())
    took, after = time.process_time() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    right = agreement(settings, np.concatenate(truth)[known], found.placed.setting[known])
    doubt = found.placed.doubt
    told = np.mean(doubt[~known] == Doubt.UNRELATED) if not known.all() else float("nan")
    return (
        f"{group:8s} {n:7d} lattices, {len(data.value):8d} observations: right {100 * right:6.2f} %, not known "
        f"{100 * np.mean(doubt[known] > 0):5.2f} %, outliers told {100 * told:5.1f} %, prepared in {spent:5.2f} s, resolved in "
        f"{took:6.2f} s, memory {before / 1024:.0f} -> {after / 1024:.0f} MB"
    )


def main() -> None:
    numbers = [int(text) for text in sys.argv[1:]] or [1000, 10_000, 100_000]
    measure("P 4", 200)  # compiles
    for n in numbers:
        for group in CASES if n <= 1000 else ("P 63", "P 3"):
            print(measure(group, n), flush=True)
    for group in CASES:
        print(measure(group, min(numbers), **HARD), "(hard)", flush=True)


if __name__ == "__main__":
    main()
