"""How unlike the directions of reciprocal space are: the anisotropic B of the data, and the resolution along its axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.downstream.mean_intensity import MeanIntensity, Reflections
from xfelproc.geometry.cells import b_matrix

Floats = NDArray[np.float64]

LIMIT = 1.2
"""Local mean of I/σ down to which data are taken to reach (as STARANISO does: Tickle et al. 2018)."""
CONE = 20.0
"""Degrees about an axis within which reflections count as along it."""
FEWEST, IN_A_SHELL, MOST_SHELLS = 60, 30, 25


@dataclass(frozen=True)
class Axis:
    """A direction: its name, its unit vector (3,), B along it and its standard deviation (Å²), and the resolution it reaches.

    ``d_min`` is in Å, None where there are too few reflections; ``beyond`` says that I/σ stays above the limit to the end of the
    data, which may reach further.
    """

    name: str
    direction: Floats
    delta_b: float
    delta_b_sigma: float
    d_min: float | None
    beyond: bool


@dataclass(frozen=True)
class Anisotropy:
    """Anisotropy of the intensities.

    ``tensor`` (3, 3) is ΔB in Å², traceless, in the frame of `geometry.cells` (a along x, b in the xy plane): I ∝ exp(-½ qᵀ ΔB q);
    ``axes`` are its principal axes from the smallest ΔB on, then a*, b*, c*; ``range_b`` is the largest less the smallest ΔB.
    """

    tensor: Floats
    tensor_sigma: Floats
    range_b: float
    chi2: float
    n_free: int
    axes: tuple[Axis, ...]

    @property
    def significant(self) -> bool:
        """Whether the χ² of ΔB is beyond what chance gives once in a thousand."""
        return self.n_free > 0 and self.chi2 > (10.83, 13.82, 16.27, 18.47, 20.52)[self.n_free - 1]


def anisotropy(reflections: Reflections, mean: MeanIntensity, cell: Sequence[float], group: gemmi.SpaceGroup) -> Anisotropy:
    """Return the anisotropy of intensities.

    Parameters
    ----------
    reflections
        Unique reflections.
    mean
        Their fitted mean, with the tensor.
    cell, group
        Of the crystal, Å and degrees.
    """
    values, vectors = np.linalg.eigh(mean.delta_b)
    named = [(f"principal {i + 1}", _forward(vectors[:, i])) for i in range(3)] if mean.n_free else []
    reciprocal = b_matrix(cell)
    named += [(name, reciprocal[:, i] / np.linalg.norm(reciprocal[:, i])) for i, name in enumerate(("a*", "b*", "c*"))]
    axes = tuple(_axis(name, direction, reflections, mean, cell, group) for name, direction in named)
    return Anisotropy(mean.delta_b, mean.delta_b_sigma, float(values[2] - values[0]), mean.anisotropy_chi2, mean.n_free, axes)


def _forward(vector: Floats) -> Floats:
    """Return the vector with its largest component positive: an eigenvector has no sense."""
    return vector if vector[np.argmax(np.abs(vector))] > 0 else -vector


def _axis(
    name: str, direction: Floats, reflections: Reflections, mean: MeanIntensity, cell: Sequence[float], group: gemmi.SpaceGroup
) -> Axis:
    along = float(direction @ mean.delta_b @ direction)
    # the elements' deviations added as if they were independent: an upper estimate along the cell's own axes
    sigma = float(np.sqrt((direction**2) @ mean.delta_b_sigma**2 @ (direction**2)))
    d_min, beyond = resolution_along(reflections, direction, cell, group)
    return Axis(name, direction, along, sigma, d_min, beyond)


def resolution_along(
    reflections: Reflections, direction: Floats, cell: Sequence[float], group: gemmi.SpaceGroup, limit: float = LIMIT
) -> tuple[float | None, bool]:
    """Return the resolution (Å) to which the mean I/σ about a direction stays above a limit, and whether it does to the end.

    Parameters
    ----------
    reflections
        Unique reflections; all their equivalents count.
    direction
        Unit vector (3,).
    cell, group
        Of the crystal.
    limit
        Mean I/σ.

    Returns
    -------
    tuple[float | None, bool]
        None where fewer than 60 reflections lie within 20° of the direction; infinity where not even the first shell is above.
    """
    reciprocal, length = b_matrix(cell), np.sqrt(reflections.s2)
    nearest = np.zeros(len(reflections))
    for op in group.operations().sym_ops:
        q = reflections.hkl @ (np.array(op.rot) // op.DEN) @ reciprocal.T
        nearest = np.maximum(nearest, np.abs(q @ direction))
    rows = np.flatnonzero(nearest >= np.cos(np.radians(CONE)) * length)
    if len(rows) < FEWEST:
        return None, False
    rows = rows[np.argsort(length[rows], kind="stable")]
    shells = np.array_split(rows, int(np.clip(len(rows) // IN_A_SHELL, 2, MOST_SHELLS)))
    ratio = reflections.intensity / reflections.sigma
    s = np.array([length[shell].mean() for shell in shells])
    signal = np.array([ratio[shell].mean() for shell in shells])
    below = np.flatnonzero(signal < limit)
    if not len(below):
        return float(1.0 / length[rows[-1]]), True
    last = int(below[0])
    if last == 0:
        return float("inf"), False
    step = (signal[last - 1] - limit) / (signal[last - 1] - signal[last])
    return float(1.0 / (s[last - 1] + step * (s[last] - s[last - 1]))), False
