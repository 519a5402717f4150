"""Merging, from shards to leaves: files of consecutive lattices with their observations, and what all of them share.

`Leaves` is a fold over the shards that reads them once: each leaf is published, and what is returned has the size of the unique
reflections. The passes over the leaves are in `stages.merge_cycles`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.observations import Observations, with_signal
from xfelproc.algorithms.merging.sample import Sample, among_smallest, priorities
from xfelproc.algorithms.merging.symmetry_notes import without_absences
from xfelproc.algorithms.merging.unique import Multiplicity
from xfelproc.io.columns import write_columns
from xfelproc.io.nodes import Partial
from xfelproc.stages.fold import UnitReader
from xfelproc.stages.merge_parts import Lattices, MergeJob

MOST_CELLS = 1 << 14
"""Lattices that the consensus of cells and photon energies is formed of, those of smallest hash: its error is a hundredth of their
spread."""

COLUMNS: dict[str, str] = {
    "hkl": "i2",
    "intensity": "f4",
    "variance_fixed": "f4",
    "variance_gain": "f4",
    "excitation": "f4",
    "partiality": "f4",
    "polarization": "f4",
    "panel": "i2",
    "fast": "f4",
    "slow": "f4",
    "flags": "u2",
}
"""Columns of a leaf's observations and their types; the names are those of `algorithms.merging.observations`."""


@dataclass(frozen=True)
class Leaves:
    """A fold over shards: publishes the observations as leaves, and returns what all of them must share.

    ``observations`` and ``lattices`` are the shares of the lattices among which the samples are looked for: of a large run the
    others cannot be in them.
    """

    job: MergeJob
    observations: float
    lattices: float

    @property
    def lineage(self) -> str:
        """Hash of the parameters."""
        return self.job.hash("leaves")

    def accumulate(self, blocks: Iterable[UnitReader]) -> Partial:
        """Publish the leaf of some shards; return numbers, unique reflections and samples of it."""
        first, parts, numbers = -1, [], []
        groups = self.job.groups.read() if self.job.n_groups else None
        for block in blocks:
            first = block.block if first < 0 else first
            parts.append(Lattices.of(block, self.job, groups))
            numbers.append(np.stack([np.full(len(parts[-1]), block.block), np.arange(len(parts[-1]))]))
        lattices, number = Lattices.joined(parts), np.concatenate(numbers, axis=1).astype(np.int32)
        observations, absences = without_absences(lattices.observations(), self.job.group)
        observations, insignificant = with_signal(observations, self.job.settings.significance)
        counts = np.bincount(observations.lattice, minlength=len(lattices))
        arrays = {**leaf_arrays(observations), **lattices.arrays(), "unit": number[0], "number": number[1]}
        write_columns(self.job.leaf(first), self.job.hash("leaf", first), arrays)
        priority = priorities(number[0], number[1])
        likely = among_smallest(priority, self.observations)
        multiplicity = Multiplicity.of(observations.hkl, self.job.group)
        sampled = observations.select(likely[observations.lattice])
        return {
            **Sample.of(sampled, priority).arrays(),
            **_sampled(priority, among_smallest(priority, self.lattices), lattices.cell, lattices.wavelength),
            "keys": multiplicity.keys,
            "counts": multiplicity.counts,
            "absences": np.array([absences.count, absences.signal]),
            "first": np.array([first]),
            "n_lattices": np.array([len(lattices)]),
            "n_observations": np.array([int(counts.sum())]),
            "wavelength": np.array([float(np.sum(lattices.wavelength))]),
            "lost": np.append(lattices.lost, insignificant),
        }

    def combine(self, first: Partial, second: Partial) -> Partial:
        """Return that of both."""
        both = Multiplicity(first["keys"], first["counts"]) + Multiplicity(second["keys"], second["counts"])
        priority, *known = (np.concatenate([first[name], second[name]]) for name in ("cells_priority", "cells", "wavelengths"))
        sample = Sample.from_arrays(first).with_more(Sample.from_arrays(second))
        joined = {name: np.concatenate([first[name], second[name]]) for name in ("first", "n_lattices", "n_observations")}
        return {
            **sample.arrays(),
            **_sampled(priority, np.ones(len(priority), dtype=bool), *known),
            "keys": both.keys,
            "counts": both.counts,
            "absences": first["absences"] + second["absences"],
            **joined,
            "wavelength": first["wavelength"] + second["wavelength"],
            "lost": first["lost"] + second["lost"],
        }


def leaf_arrays(observations: Observations) -> Partial:
    """Return observations as the arrays of a leaf: `COLUMNS`, and ``starts`` (n_lattices + 1,) that bound the lattices in them."""
    counts = np.bincount(observations.lattice, minlength=observations.n_lattices)
    arrays = {name: getattr(observations, name).astype(kind) for name, kind in COLUMNS.items()}
    return arrays | {"starts": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)}


def _sampled(
    priority: NDArray[np.uint64], likely: NDArray[np.bool_], cells: NDArray[np.float64], wavelengths: NDArray[np.float64]
) -> Partial:
    """Return cells and wavelengths of the lattices of smallest priority, in their order."""
    order = np.flatnonzero(likely)
    order = np.sort(order[np.argsort(priority[order], kind="stable")[:MOST_CELLS]])
    return {"cells": cells[order], "wavelengths": wavelengths[order], "cells_priority": priority[order]}
