"""The cell that most lattices of a run share.

Cells are compared as lattices: each is reduced to its primitive Niggli basis, and two agree if some basis of the one, as short
as its reduced one within the errors, has the lengths and angles of the other's. (A Niggli cell alone jumps where two choices are
nearly equal: Andrews & Bernstein 1988, Acta Cryst. A44, 1009.) Clusters are taken greedily: the lattice with most others around it,
with its neighbours, and again among the rest; what grows by chains is no cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xfelproc.geometry.cells import Floats, metric_tensor, real_space_basis
from xfelproc.geometry.lattice_characters import BravaisFit, LatticeFits, bravais_of, distortion, nearly_reduced
from xfelproc.geometry.reduction import cell_of_metric, primitive_transform, reduced_basis

Cell = tuple[float, float, float, float, float, float]
MAX_SEEDS = 400
"""Lattices that are tried as the middle of a cluster, spread over all."""


@dataclass(frozen=True)
class CellCluster:
    """Lattices that agree.

    ``cell`` is the conventional cell (Å, degrees) with the symmetry imposed, of the median over the members; ``spread`` the robust
    standard deviation of its lengths and angles over them; ``members`` the rows of the cells given.
    """

    cell: Cell
    spread: Cell
    bravais: str
    space_group: str
    penalty: float
    members: NDArray[np.int64]

    @property
    def count(self) -> int:
        """Number of members."""
        return len(self.members)


@dataclass(frozen=True)
class Consensus:
    """Clusters, the largest first, and how many lattices there were."""

    clusters: tuple[CellCluster, ...]
    n_lattices: int

    @property
    def best(self) -> CellCluster:
        """The largest cluster."""
        return self.clusters[0]


def find_consensus(
    cells: ArrayLike,
    centrings: Sequence[str] | None = None,
    *,
    space_group: str | None = None,
    length_tolerance: float = 0.03,
    angle_tolerance: float = 2.0,
    max_penalty: float = 150.0,
    max_clusters: int = 10,
) -> Consensus | None:
    """Return the clusters of cells; None if there are no cells.

    Parameters
    ----------
    cells
        (n, 6) conventional cells, Å and degrees.
    centrings
        Letter of the centring of each (default: all primitive).
    space_group
        Symmetry that is known; None: the highest that the median lattice fits.
    length_tolerance, angle_tolerance
        Largest relative difference of lengths, and difference of angles (degrees), of lattices that agree.
    max_penalty
        Distortion that a symmetry may cost: 100 times percent of a length or degrees of an angle.
    max_clusters
        Clusters returned at most.
    """
    values = np.asarray(cells, dtype=np.float64).reshape(-1, 6)
    if not len(values):
        return None
    letters = ["P"] * len(values) if centrings is None else list(centrings)
    metrics = np.array([_reduced_metric(cell, letter) for cell, letter in zip(values, letters, strict=True)])
    reduced = np.array([cell_of_metric(g) for g in metrics])
    seeds = np.unique(np.linspace(0, len(values) - 1, min(MAX_SEEDS, len(values))).astype(np.int64))
    near = {int(s): _neighbours(metrics[s], reduced, length_tolerance, angle_tolerance) for s in seeds}
    left = np.ones(len(values), dtype=np.bool_)
    clusters: list[CellCluster] = []
    while len(clusters) < max_clusters:
        free = [s for s in near if left[s]]
        if not free:
            break
        seed = max(free, key=lambda s: (int(np.count_nonzero((near[s][1] >= 0) & left)), -s))
        bases, choice = near[seed]
        members = np.flatnonzero((choice >= 0) & left)
        clusters.append(_cluster(metrics, members, bases[choice[members]], space_group, max_penalty))
        left[members] = False
    clusters.sort(key=lambda cluster: (-cluster.count, int(cluster.members[0])))
    return Consensus(tuple(clusters), len(values))


def _reduced_metric(cell: Floats, centring: str) -> Floats:
    basis, _ = reduced_basis(primitive_transform(centring) @ real_space_basis([float(v) for v in cell]))
    return np.asarray(basis @ basis.T, dtype=np.float64)


def _neighbours(
    seed: Floats, reduced: Floats, length_tolerance: float, angle_tolerance: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return bases (k, 3, 3) of the seed's lattice, and which of them each reduced cell (n, 6) agrees with best (-1: none)."""
    bases = nearly_reduced(seed, 2.0 * length_tolerance)
    alternatives = np.array([cell_of_metric(t @ seed @ t.T) for t in bases.astype(np.float64)])
    length = np.max(np.abs(reduced[:, None, :3] / alternatives[None, :, :3] - 1.0), axis=2) / length_tolerance
    angle = np.max(np.abs(reduced[:, None, 3:] - alternatives[None, :, 3:]), axis=2) / angle_tolerance
    off = np.maximum(length, angle)
    choice = np.argmin(off, axis=1)
    best = off[np.arange(len(reduced)), choice]
    return bases, np.where(best <= 1.0, choice, -1).astype(np.int64)


def _cluster(
    metrics: Floats, members: NDArray[np.int64], bases: NDArray[np.int64], space_group: str | None, max_penalty: float
) -> CellCluster:
    """Return the cluster of members whose reduced basis agrees with ``bases`` (one each) of the seed's lattice."""
    back = np.linalg.inv(bases.astype(np.float64))
    aligned = back @ metrics[members] @ back.transpose(0, 2, 1)
    middle = np.median(np.array([cell_of_metric(g) for g in aligned]), axis=0)
    fit = _symmetry(middle, space_group, max_penalty)
    transform = fit.transform.astype(np.float64)
    conventional = np.array([cell_of_metric(transform @ g @ transform.T) for g in aligned])
    median = np.median(conventional, axis=0)
    spread = 1.4826 * np.median(np.abs(conventional - median), axis=0)
    group = space_group or fit.space_group
    penalty, cell = distortion(metric_tensor([float(v) for v in median]), group)
    a, b, c, alpha, beta, gamma = (float(v) for v in spread)
    return CellCluster(cell, (a, b, c, alpha, beta, gamma), fit.bravais, group, penalty, members)


def _symmetry(cell: Floats, space_group: str | None, max_penalty: float) -> BravaisFit:
    fits = LatticeFits(real_space_basis([float(v) for v in cell]))
    if space_group is not None:
        wanted = fits.bravais(bravais_of(space_group), 998.0)
        if wanted is not None:
            return wanted
    return fits.highest(max_penalty)
