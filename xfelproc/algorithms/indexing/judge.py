"""Is a lattice more than chance?

A spot that has nothing to do with a lattice of primitive volume V lies within t of one of its points with the chance
``V (4/3) π t³``; of n such spots k or more do so with a Poisson tail. A search tries many lattices, so the tail is multiplied by
their number: how many lattices within the range searched can be told apart at the tolerance t. With δ = t / q̄ (q̄: the
root mean square length of the spots' q) these are 8π² / δ³ orientations times, for each length and angle of the cell, its
range over δ. Several tolerances are tried, since spots of sharp crystals lie nearer to the lattice than those of others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xfelproc.geometry.cells import Floats
from xfelproc.kernels.indexing import log10_poisson_tail
from xfelproc.kernels.lattice_search import lattice_distances

MAX_FRACTION = 0.3
"""A spot belongs to a lattice if each of its fractional indices is this near to an integer."""


@dataclass(frozen=True, eq=False)
class Verdict:
    """How a lattice explains spots: ``log10_p`` is the chance that random spots show such a lattice anywhere in the search.

    ``tolerance`` is the one at which that is smallest, ``loose`` whether it is the widest.
    """

    log10_p: float
    tolerance: float
    inliers: NDArray[np.bool_]
    hkl: NDArray[np.int32]
    loose: bool

    @property
    def count(self) -> int:
        """Number of spots explained."""
        return int(np.count_nonzero(self.inliers))


def tolerances_of(basis: Floats, largest: float) -> Floats:
    """Return the tolerances (1/Å) to try for a primitive basis, largest first: at most 0.3 of its shortest reciprocal axis."""
    a_matrix = np.linalg.inv(basis)
    shortest = float(np.min(np.linalg.norm(a_matrix, axis=0)))
    return min(largest, 0.3 * shortest) * np.array([1.0, 0.5, 0.25])


def log10_hypotheses(tolerance: float, q_rms: float, ranges: tuple[float, float]) -> float:
    """Return log10 of the number of lattices that can be told apart.

    ``ranges`` are the widths searched in each length (relative) and each angle (radians) of the cell.
    """
    delta = tolerance / q_rms
    orientations = max(1.0, 8.0 * math.pi**2 / delta**3)
    return math.log10(orientations) + 3.0 * sum(math.log10(max(1.0, width / delta)) for width in ranges)


def judge(basis: Floats, q: Floats, largest: float, ranges: tuple[float, float]) -> Verdict:
    """Judge a primitive basis (rows a, b, c) by the spots q (n, 3); ``largest`` is the widest tolerance in 1/Å."""
    hkl, fraction, distance = lattice_distances(np.ascontiguousarray(basis), q)
    volume = abs(float(np.linalg.det(basis)))
    q_rms = math.sqrt(float(np.mean(np.einsum("ij,ij->i", q, q))))
    tolerances = tolerances_of(basis, largest)
    near = fraction <= MAX_FRACTION
    best, best_tolerance = math.inf, float(tolerances[0])
    for tolerance in tolerances:
        count = int(np.count_nonzero(near & (distance < tolerance)))
        mean = len(q) * min(1.0, volume * 4.0 / 3.0 * math.pi * float(tolerance) ** 3)
        chance = log10_poisson_tail(count, mean) + log10_hypotheses(float(tolerance), q_rms, ranges)
        if chance < best:
            best, best_tolerance = chance, float(tolerance)
    return Verdict(best, best_tolerance, near & (distance < tolerances[0]), hkl, best_tolerance == tolerances[0])
