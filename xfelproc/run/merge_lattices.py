"""The lattices of a merging: their table in the folder of the merged files, and what ``merge.json`` and the report say of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.lattice_models import Reason
from xfelproc.algorithms.merging.sample import priorities
from xfelproc.io.store import write_growing
from xfelproc.models.tables import ScaledLatticeTable

FILE = "lattices.h5"
"""In the folder of the merged files: one row a lattice."""
BINS, STRETCHES = 60, 100
"""Of the histograms, and of the places along the run."""
SAMPLE = 1 << 14
"""Lattices that the histograms are of, those of smallest hash."""
WORST = 20
SHOWN = ("cell_deviation", "mahalanobis", "energy", "delta_cc_half", "correlation")


class LatticeSummary:
    """What is said of lattices that come table by table; ``n_units`` is the number of shards."""

    def __init__(self, n_units: int) -> None:
        self.n_units = max(n_units, 1)
        self._along = np.zeros((min(STRETCHES, self.n_units), len(Reason)), dtype=np.int64)
        names = (*SHOWN, "unit", "lattice", "reason")
        self._sample = ScaledLatticeTable(0), np.zeros(0, dtype=np.uint64)
        self._worst = ScaledLatticeTable(0)
        self._names = names

    def watched(self, tables: Iterable[ScaledLatticeTable]) -> Iterator[ScaledLatticeTable]:
        """Yield the tables again, and take notice of them."""
        for table in tables:
            self.add(table)
            yield table

    def add(self, table: ScaledLatticeTable) -> None:
        """Take notice of more lattices."""
        places = table["unit"].astype(np.int64) * len(self._along) // self.n_units
        np.add.at(self._along, (places, table["reason"]), 1)
        priority = priorities(table["unit"].astype(np.int64), table["lattice"].astype(np.int64))
        both = ScaledLatticeTable.concatenate([self._sample[0], table])
        hashes = np.concatenate([self._sample[1], priority])
        rows = np.sort(np.argsort(hashes, kind="stable")[:SAMPLE])
        self._sample = both.select(rows), hashes[rows]
        known = table.select(np.isfinite(table["delta_cc_half"]))
        worst = ScaledLatticeTable.concatenate([self._worst, known])
        self._worst = worst.select(np.argsort(worst["delta_cc_half"], kind="stable")[:WORST])

    def record(self) -> dict[str, Any]:
        """Return plain values for ``merge.json``."""
        sample = self._sample[0]
        kept = sample["reason"] == Reason.USED
        first = (np.arange(len(self._along)) * self.n_units + len(self._along) - 1) // len(self._along)
        along: dict[str, Any] = {"first_unit": first.tolist(), "lattices": self._along.sum(axis=1).tolist()}
        taken = [reason for reason in Reason if reason and self._along[:, reason].any()]
        return {
            "along": along | {"left_out": {reason.name.lower(): self._along[:, reason].tolist() for reason in taken}},
            "histograms": {name: histogram(sample[name].astype(np.float64), kept) for name in SHOWN},
            "lowest_delta_cc_half": [
                {
                    "unit": int(row["unit"]),
                    "lattice": int(row["lattice"]),
                    "delta_cc_half": float(row["delta_cc_half"]),
                    "reason": Reason(int(row["reason"])).name.lower(),
                }
                for row in _rows(self._worst, ("unit", "lattice", "delta_cc_half", "reason"))
            ],
        }


def _rows(table: ScaledLatticeTable, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for values in zip(*(table[name].tolist() for name in names), strict=True):
        yield dict(zip(names, values, strict=True))


def histogram(values: NDArray[np.float64], kept: NDArray[np.bool_]) -> dict[str, Any] | None:
    """Return edges and counts of the kept and of the other values, between the 0.5 and 99.5 % quantiles; None of no values.

    The first and the last bin hold what is beyond.
    """
    known = np.isfinite(values)
    if not known.any():
        return None
    low, high = np.quantile(values[known], [0.005, 0.995]).tolist()
    if not high > low:
        return None
    edges = np.linspace(low, high, BINS + 1)
    counts = [np.histogram(np.clip(values[known & chosen], low, high), edges)[0].tolist() for chosen in (kept, ~kept)]
    return {"edges": edges.tolist(), "kept": counts[0], "left_out": counts[1]}


def write_lattices(tables: Iterable[ScaledLatticeTable], n_units: int, output: Path) -> dict[str, Any]:
    """Publish the lattices of a merging, table by table, and return what ``merge.json`` says of them.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    summary = LatticeSummary(n_units)
    write_growing(output / FILE, "lattices", ScaledLatticeTable, summary.watched(tables))
    return summary.record()
