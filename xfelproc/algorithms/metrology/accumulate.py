"""One pass over lattices: the normal equations of the groups, with all that is needed to judge and to bound residuals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.metrology.settings import MetrologySettings
from xfelproc.algorithms.metrology.spots import Batch, CrystalSpots, batches
from xfelproc.algorithms.metrology.state import MetrologyState
from xfelproc.geometry.hierarchy import group_of_panel, groups_of
from xfelproc.geometry.prediction import pack_detector
from xfelproc.kernels import metrology as kernel
from xfelproc.kernels.metrology_arrays import Lattices, Model, Spots, Sums
from xfelproc.kernels.metrology_lattice import SMALL_DECREASE as SMALL_DECREASE
from xfelproc.kernels.robust import BINS_AN_OCTAVE, FIRST_OCTAVE, N_BINS

Partial = dict[str, NDArray[Any]]
Floats = NDArray[np.float64]
_KINDS = {"none": 0, "huber": 1, "tukey": 2}
_COMMON_SPOTS = 20.0  # spots that the common σ of ΔΨ counts for beside a lattice's own


def empty_partial(n_groups: int, n_panels: int) -> Partial:
    """Return sums over no crystals."""
    n = 6 * n_groups
    return {
        "normal": np.zeros((2, n * (n + 1) // 2)),
        "gradient": np.zeros((2, n)),
        "totals": np.zeros((2, kernel.N_TOTALS)),
        "statistics": np.zeros((n_panels, kernel.N_STATISTICS)),
        "histogram": np.zeros((n_panels, N_BINS), dtype=np.int64),
        "psi_histogram": np.zeros(N_BINS, dtype=np.int64),
    }


def accumulate(settings: MetrologySettings, state: MetrologyState, crystals: Iterable[CrystalSpots]) -> Partial:
    """Return the sums over lattices for the detector of ``state``."""
    groups = groups_of(state.detector, state.finest)
    partial = empty_partial(len(groups), len(state.detector))
    for batch in batches(crystals):
        add_batch(settings, state, batch, partial)
    return partial


def add_batch(settings: MetrologySettings, state: MetrologyState, batch: Batch, partial: Partial) -> tuple[Floats, Floats]:
    """Add lattices to ``partial``; return their refined A (n, 3, 3) and residuals (m, 3): fast, slow (px), ΔΨ (radians)."""
    groups = groups_of(state.detector, state.finest)
    refined, residuals = np.empty((len(batch), 3, 3)), np.empty((len(batch.panel), 3))
    kernel.add_crystals(
        Lattices(batch.lattices, batch.bases, batch.n_bases, batch.symmetry, batch.wavelengths, batch.halves, batch.starts),
        Spots(batch.hkl, batch.panel, batch.observed),
        Model(
            pack_detector(state.detector),
            state.bounds,
            state.reference,
            group_of_panel(groups, len(state.detector)),
            np.array([np.concatenate([group.axes.ravel(), group.centre]) for group in groups]),
            -np.asarray(state.beam.direction) / np.linalg.norm(state.beam.direction),
            _kernel_settings(settings, state),
        ),
        Sums(**partial),
        refined,
        residuals,
    )
    return refined, residuals


def _kernel_settings(settings: MetrologySettings, state: MetrologyState) -> Floats:
    return np.array(
        [
            {"turn": np.inf, "point": 0.0, "auto": state.blend}[settings.prediction],
            _KINDS[settings.outliers],
            settings.sigma_floor,
            np.radians(settings.sigma_psi),
            np.radians(settings.sigma_psi_floor),
            settings.cell_restraint,
            settings.min_crystal_spots,
            state.psi_common,
            _COMMON_SPOTS if state.psi_common > 0 else 0.0,
        ]
    )


def combine(first: Partial, second: Partial) -> Partial:
    """Return the sums over the lattices of both."""
    return {name: first[name] + second[name] for name in first}


def unpacked(packed: Floats) -> Floats:
    """Return the symmetric matrix of a packed lower triangle."""
    n = int((np.sqrt(8 * len(packed) + 1) - 1) // 2)
    full = np.empty((n, n))
    end = 0
    for row in range(n):
        begun, end = end, end + row + 1
        full[row, : row + 1] = full[: row + 1, row] = packed[begun:end]
    return full


def quantile_of(histogram: NDArray[np.int64], fraction: float = 0.5) -> float:
    """Return a quantile of the values that a histogram of `xfelproc.kernels.robust.bin_of` counts; NaN if there are none."""
    total = int(histogram.sum())
    if total == 0:
        return float("nan")
    sums = np.cumsum(histogram)
    number = int(np.searchsorted(sums, fraction * total))
    below = int(sums[number - 1]) if number else 0
    place = number + (fraction * total - below) / max(1, int(histogram[number]))
    return float(2.0 ** (FIRST_OCTAVE + place / BINS_AN_OCTAVE))
