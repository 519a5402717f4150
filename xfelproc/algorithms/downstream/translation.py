"""Translational pseudo-symmetry: a Patterson function of intensities over their expectation, and its largest peak off the origin.

The Patterson of reflections between 10 and 5 Å, where structures hardly differ from their like: two molecules of one orientation
make a peak, of up to the height of the origin where they make up the crystal. Above a fifth of the origin it is hardly chance
(Zwart, Grosse-Kunstleve & Adams 2005, CCP4 Newsletter 43).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfftn, next_fast_len

from xfelproc.algorithms.downstream.mean_intensity import Reflections
from xfelproc.geometry.cells import real_space_basis

Floats = NDArray[np.float64]

D_MAX, D_MIN = 10.0, 5.0
FEWEST = 100
"""Reflections, equivalents counted, that a Patterson is made of at least."""
NEAR = 15.0
"""Å about the origin and its equivalents by centring in which peaks are those of the structure's own vectors."""
POINTS = 3.0
"""Grid points a D_MIN along each axis."""
PSEUDO_TRANSLATION = 0.2
"""Height over the origin from which it is told of, if it is more than chance."""
CHANCE = 5.0
"""Standard deviations of a Patterson of independent intensities, which the largest of all its points may reach."""


@dataclass(frozen=True)
class Translation:
    """The largest peak: its height over that of the origin, the vector (fractions of the cell), its length (Å).

    ``chance`` is the height that noise alone may reach; ``n`` the reflections between 10 and 5 Å, equivalents counted.
    """

    height: float
    vector: tuple[float, float, float]
    distance: float
    chance: float
    n: int

    @property
    def significant(self) -> bool:
        """Whether it is told of."""
        return self.height >= max(PSEUDO_TRANSLATION, self.chance)


def translation(reflections: Reflections, expected: Floats, cell: Sequence[float], group: gemmi.SpaceGroup) -> Translation | None:
    """Return the largest peak of the Patterson; None where there are too few reflections.

    Parameters
    ----------
    reflections
        Unique ones, divided by ε.
    expected
        (n,) mean intensity that each should have.
    cell, group
        Å and degrees; space group.
    """
    d2 = 1.0 / np.maximum(reflections.s2, 1e-12)
    chosen = (d2 <= D_MAX**2) & (d2 >= D_MIN**2)
    hkl, z = reflections.hkl[chosen], reflections.intensity[chosen] / expected[chosen]
    indices, value = _expanded(hkl, np.maximum(z, 0.0), group)
    if len(indices) < FEWEST:
        return None
    density = _patterson(indices, value, cell)
    points = np.stack(np.meshgrid(*(np.arange(n) / n for n in density.shape), indexing="ij"), axis=-1)
    distance = _distances(points.reshape(-1, 3), cell, group).reshape(density.shape)
    far = distance > NEAR
    if not far.any():
        return None
    best = np.unravel_index(int(np.argmax(np.where(far, density, -np.inf))), density.shape)
    x, y, w = (float(v) for v in points[best])
    # half of the sphere is independent
    chance = CHANCE * float(np.sqrt(2.0 * np.mean(value**2) / np.mean(value) ** 2 / len(value)) / np.sqrt(2.0))
    return Translation(float(density[best] / density[0, 0, 0]), (x, y, w), float(distance[best]), chance, len(indices))


def _expanded(hkl: NDArray[np.int32], value: Floats, group: gemmi.SpaceGroup) -> tuple[NDArray[np.int64], Floats]:
    """Return all equivalents of reflections under the Laue group, each once, with their values."""
    rotations = {tuple(np.rint(np.array(op.rot) / op.DEN).astype(int).ravel()) for op in group.operations().sym_ops}
    parts = [sign * hkl.astype(np.int64) @ np.array(r).reshape(3, 3) for r in sorted(rotations) for sign in (1, -1)]
    every = np.concatenate(parts)
    unique, first = np.unique(every, axis=0, return_index=True)
    return unique, np.tile(value, len(parts))[first]


def _patterson(hkl: NDArray[np.int64], value: Floats, cell: Sequence[float]) -> Floats:
    """Return the Patterson on a grid over the cell, up to a factor; ``hkl`` has all equivalents and Friedel mates."""
    longest = np.abs(hkl).max(axis=0)
    shape = [
        next_fast_len(max(int(np.ceil(POINTS * length / D_MIN)), 2 * int(h) + 2), real=True)
        for length, h in zip(cell[:3], longest, strict=True)
    ]
    shape[2] += shape[2] % 2
    half = hkl[:, 2] >= 0
    transform = np.zeros((shape[0], shape[1], shape[2] // 2 + 1), dtype=np.complex128)
    transform[hkl[half, 0] % shape[0], hkl[half, 1] % shape[1], hkl[half, 2]] = value[half]
    density: Floats = irfftn(transform, s=shape)
    return density


def _distances(points: Floats, cell: Sequence[float], group: gemmi.SpaceGroup) -> Floats:
    """Return the distance (Å) of points (n, 3) from the nearest lattice point, those of centring included."""
    basis = real_space_basis(cell)
    nearest = np.full(len(points), np.inf)
    for centre in group.operations().cen_ops:
        reduced = points - np.array(centre) / gemmi.Op.DEN
        reduced -= np.rint(reduced)
        for step in product((-1, 0, 1), repeat=3):
            nearest = np.minimum(nearest, np.linalg.norm((reduced + step) @ basis, axis=1))
    return nearest
