"""Is a lattice more than chance?

A spot that has nothing to do with a lattice of primitive volume V lies within an ellipsoid of semi-axes t∥ (along the diffracted
ray) and t⊥ (across it) about one of its points with the chance ``V (4/3) π t∥ t⊥²``; of n such spots k or more do so with a Poisson
tail. A search tries many lattices, so the tail is multiplied by their number: how many lattices within the range searched can be
told apart. With δ = (t∥ t⊥²)^(1/3) / q̄ (q̄: the root mean square length of the spots' q) these are 8π² / δ³ orientations times, for
each length and angle of the cell, its range over δ. Several tolerances are tried, since crystals and detectors differ, and
several ranges about the target's cell, since a lattice that agrees with it better needs less proof; each choice counts as
a hypothesis of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xfelproc.geometry.cells import Floats
from xfelproc.kernels.indexing import count_inliers, log10_poisson_tail, spots_off_lattice

Ranges = tuple[float, float]

MAX_FRACTION = 0.3
"""A spot belongs to a lattice if each of its fractional indices is this near to an integer."""

_BROAD = 0.4
"""Share of the unexplained spots with such indices from which a lattice is broad; by chance it is (2 x 0.3)³ = 0.22."""


@dataclass(frozen=True, eq=False)
class Verdict:
    """How a lattice explains spots: ``log10_p`` is the chance that random spots show such a lattice anywhere in the search.

    ``inliers`` are the spots explained, ``close`` those and others too far away to count, but not to be of this lattice. ``broad``
    says that many more of the other spots have indices near to integers than by chance: those of a mosaic crystal, or of a bad
    geometry; ``close`` then holds them all.
    ``loose`` says that it is smallest at the widest tolerance of positions, as if these were displaced.
    """

    log10_p: float
    inliers: NDArray[np.bool_]
    close: NDArray[np.bool_]
    hkl: NDArray[np.int32]
    loose: bool
    broad: bool

    @property
    def count(self) -> int:
        """Number of spots explained."""
        return int(np.count_nonzero(self.inliers))


def tolerances_of(basis: Floats, largest: float) -> Floats:
    """Return the tolerances (1/Å) to try for a primitive basis, largest first: at most 0.3 of its shortest reciprocal axis."""
    a_matrix = np.linalg.inv(basis)
    shortest = float(np.min(np.linalg.norm(a_matrix, axis=0)))
    return min(largest, 0.3 * shortest) * np.array([1.0, 0.5, 0.25])


def log10_hypotheses(tolerance: float, q_rms: float, ranges: Ranges) -> float:
    """Return log10 of the number of lattices that can be told apart.

    ``ranges`` are the widths searched in each length (relative) and each angle (radians) of the cell.
    """
    delta = tolerance / q_rms
    orientations = max(1.0, 8.0 * math.pi**2 / delta**3)
    return math.log10(orientations) + 3.0 * sum(math.log10(max(1.0, width / delta)) for width in ranges)


def ranges_about(length: float, angle: float, widest: tuple[float, float]) -> tuple[Ranges, int]:
    """Return the narrowest of three nested ranges that holds a cell, and how many ranges there are.

    ``length`` (relative) and ``angle`` (degrees) are its differences from the target, ``widest`` the largest allowed. The
    ranges are a quarter, a half and the whole of that.
    """
    for part in (0.25, 0.5, 1.0):
        if length <= part * widest[0] and angle <= part * widest[1]:
            break
    return (2.0 * part * widest[0], 2.0 * part * math.radians(widest[1])), 3


def judge(basis: Floats, q: Floats, s0: Floats, largest: float, ranges: Ranges, n_ranges: int = 1) -> Verdict:
    """Judge a primitive basis (rows a, b, c) by the spots q (n, 3); ``largest`` is the widest tolerance in 1/Å.

    ``ranges`` is what was searched (see `log10_hypotheses`), chosen out of ``n_ranges``.
    """
    hkl, fraction, radial, tangential = spots_off_lattice(np.ascontiguousarray(basis), q, s0)
    volume = abs(float(np.linalg.det(basis)))
    q_rms = math.sqrt(float(np.vdot(q, q)) / len(q))
    tolerances = tolerances_of(basis, largest)
    counts = count_inliers(fraction, radial, tangential, MAX_FRACTION, tolerances)
    best, best_at = math.inf, (0, 0)
    for (j, k), count in np.ndenumerate(counts):
        cube = float(tolerances[j] * tolerances[k] ** 2)
        mean = len(q) * min(1.0, volume * 4.0 / 3.0 * math.pi * cube)
        chance = log10_poisson_tail(int(count), mean) + log10_hypotheses(cube ** (1.0 / 3.0), q_rms, ranges)
        if chance < best:
            best, best_at = chance, (j, k)
    distance = np.hypot(radial, tangential)
    near = fraction <= MAX_FRACTION
    inliers, close = near & (distance < tolerances[0]), near & (distance < 1.5 * tolerances[0])
    broad = int(np.count_nonzero(near & ~inliers)) > _BROAD * int(np.count_nonzero(~inliers)) + 5
    return Verdict(best + math.log10(n_ranges * counts.size), inliers, near if broad else close, hkl, best_at[1] == 0, broad)
