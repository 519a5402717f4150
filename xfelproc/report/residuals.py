"""Residuals of indexed spots on a coarse grid of each panel, as a fold; what the report and detector-statistics show of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from xfelproc.geometry.detector import mm_to_lab
from xfelproc.io.nodes import Partial
from xfelproc.models.experiment import Detector, Vector3
from xfelproc.models.frames import UnitResult
from xfelproc.models.tables import PanelStatisticsTable

Floats = NDArray[np.float64]
VERSION = 1
SUMS = 11
"""Of each cell: count; fast, slow, their squares; radial, transverse, their squares; ΔΨ, its square."""
SIDES = ((1, 8), (16, 4))
"""Cells along each side of a panel, of detectors of at most so many panels; of others 2."""


class Unit(Protocol):
    """A unit's shard."""

    def result(self) -> UnitResult:
        """Return all tables."""


def cells_a_side(detector: Detector) -> int:
    """Return the number of cells along each side of a panel."""
    return next((cells for most, cells in SIDES if len(detector) <= most), 2)


@dataclass(frozen=True)
class ResidualFold:
    """Fold over shards; ``direction`` points from the sample to the source."""

    detector: Detector
    direction: Vector3 = (0.0, 0.0, 1.0)

    @property
    def lineage(self) -> str:
        """Hash of what the result depends on beside the shards."""
        return hashlib.sha256(f"residuals {VERSION} {self.detector!r} {self.direction}".encode()).hexdigest()

    def accumulate(self, blocks: Iterable[Unit]) -> Partial:
        """Return the sums over some units."""
        cells = cells_a_side(self.detector)
        total = np.zeros((len(self.detector), cells, cells, SUMS))
        for block in blocks:
            total += residual_sums(self.detector, self.direction, block.result())
        return {"residuals": total}

    def combine(self, first: Partial, second: Partial) -> Partial:
        """Return the sums over both."""
        return {"residuals": first["residuals"] + second["residuals"]}


def residual_sums(detector: Detector, direction: Vector3, result: UnitResult) -> Floats:
    """Return the sums (panel, slow, fast, 11) of a unit, over the indexed spots that refinement kept; px and degrees."""
    cells = cells_a_side(detector)
    total = np.zeros((len(detector), cells, cells, SUMS))
    indexed = result.indexed.select(result.indexed["used"])
    spots = result.spots.select(indexed["spot"])
    if not len(indexed):
        return total
    panel = spots["panel"]
    off = np.column_stack([spots["fast"] - indexed["fast_calc"], spots["slow"] - indexed["slow_calc"]])
    turned = _polar(detector, direction, panel, np.column_stack([indexed["fast_calc"], indexed["slow_calc"]]), off)
    psi = indexed["delta_psi"].astype(np.float64)
    values = np.column_stack([np.ones(len(psi)), off, off**2, turned, turned**2, psi, psi**2])
    place = np.column_stack([spots["slow"], spots["fast"]]) / detector.image_sizes[panel][:, ::-1]
    cell = np.clip((place * cells).astype(np.int64), 0, cells - 1)
    np.add.at(total, (panel, cell[:, 0], cell[:, 1]), values)
    return total


def _polar(detector: Detector, direction: Vector3, panel: NDArray[np.int32], at: Floats, off: Floats) -> Floats:
    """Return residuals (n, 2) on panels, px, as (away from the beam, around it), px."""
    size, beam = detector.pixel_sizes[panel], np.asarray(direction)
    lab = mm_to_lab(detector, panel, at * size)
    across = lab - (lab @ beam)[:, None] * beam
    away = across / np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-12)
    axes = detector.d_matrices[panel][:, :, :2]
    moved = np.einsum("nij,nj->ni", axes, off * size) / np.sqrt(size.prod(axis=1))[:, None]
    radial, around = np.einsum("ni,ni->n", moved, away), np.einsum("ni,ni->n", moved, np.cross(beam, away))
    return np.column_stack([radial, around])


def panel_statistics(detector: Detector, sums: Floats) -> PanelStatisticsTable:
    """Return the statistics of each panel, and of all, from sums (panel, slow, fast, 11)."""
    by_panel = sums.sum(axis=(1, 2))
    rows = np.vstack([by_panel, by_panel.sum(axis=0)])
    count = rows[:, 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = rows / count[:, None]
        rms = np.sqrt(mean)  # of sums of squares; the others are not used
    return PanelStatisticsTable(
        None,
        panel=[*range(len(detector)), -1],
        name=[*(p.name for p in detector.panels), "all"],
        n_spots=count.astype(np.int64),
        mean_fast=mean[:, 1],
        mean_slow=mean[:, 2],
        rmsd_fast=rms[:, 3],
        rmsd_slow=rms[:, 4],
        mean_radial=mean[:, 5],
        mean_transverse=mean[:, 6],
        rmsd_radial=rms[:, 7],
        rmsd_transverse=rms[:, 8],
        mean_psi=mean[:, 9],
        rmsd_psi=rms[:, 10],
    )
