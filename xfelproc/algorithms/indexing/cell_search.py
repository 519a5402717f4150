"""Indexing with a known cell: real-space search over vectors of the known lengths.

The starting axis is looked for over a half-sphere of directions (Gasparotto et al. 2024, J. Appl. Cryst. 57, 931); the reference
basis is then turned about each candidate, in both senses, to find the second axis, and the third follows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from xfelproc.algorithms.indexing.target import KnownLattice
from xfelproc.geometry.cells import Floats
from xfelproc.kernels.lattice_search import complete_bases, fit_lattice, refine_axes, score_directions
from xfelproc.models.parameters import Algorithm


@dataclass(frozen=True)
class Attempt:
    """One try of the search: how many of the strongest spots, which reduced axes to start from, how many candidates to keep."""

    n_spots: int
    axes: tuple[int, ...]
    n_refined: int
    n_axes: int
    n_rotations: int
    scale: float = 1.0
    low_resolution: bool = False


_ENOUGH = 0.75
"""A candidate that explains so much of the weight ends the search (one, less the squared distances in tolerances, a spot)."""
FIRST = Attempt(64, (0,), 40, 12, 2)
FURTHER = Attempt(128, (0, 1), 60, 20, 2)
"""The second try for further lattices of a frame: what is left is often no lattice, and must not cost much."""
DISPLACED = Attempt(64, (0,), 30, 10, 2)
"""For each place of the beam centre that is tried."""
_RETRIES = (
    Attempt(128, (0, 1), 120, 40, 4),
    Attempt(64, (0, 1, 2), 120, 40, 4, low_resolution=True),
    Attempt(96, (0,), 60, 24, 2, scale=1.02),
    Attempt(96, (0,), 60, 24, 2, scale=0.98),
)


class CellSearch(Algorithm):
    """Search for vectors of the known lengths (Gasparotto et al. 2024), generalised to any cell."""

    method: Literal["cell_search"] = "cell_search"
    coverage: Annotated[
        float, Field(gt=0.05, le=1.0, description="step between directions, in units of 1 / (axis length x rms |q|), rad")
    ] = 0.28
    retries: Annotated[
        int, Field(ge=0, le=4, description="further tries with other spots, axes and lengths where the first fails")
    ] = 4
    shape_sigma: Annotated[
        float, Field(gt=0.0005, lt=0.2, description="relative σ by which cell axes may differ from the target")
    ] = 0.02

    def attempts(self) -> tuple[Attempt, ...]:
        """Return the tries in order."""
        return (FIRST, *_RETRIES[: self.retries])

    def search(self, q: Floats, weight: Floats, lattice: KnownLattice, attempt: Attempt, tolerance: float) -> Floats:
        """Return candidate primitive bases (k, 3, 3), rows in the order of ``lattice.reduced``, best first.

        ``q`` (n, 3) in 1/Å and ``weight`` (n,), strongest spot first; ``tolerance`` in 1/Å.
        """
        rows = _choose(q, attempt)
        q_used, w_used = np.ascontiguousarray(q[rows]), np.ascontiguousarray(weight[rows])
        reference = lattice.reduced * attempt.scale
        found, marks = [], []
        shortest = float(np.min(np.linalg.norm(np.linalg.inv(reference), axis=0)))
        last = min(tolerance, 0.3 * shortest)
        tolerances = np.array([max(last, min(2.5 * last, 0.3 * shortest)), last, last])
        for axis in attempt.axes:
            order = np.roll(np.arange(3), -axis)
            turned = np.ascontiguousarray(reference[order])
            bases, scores = self._from_axis(q_used, w_used, turned, attempt, tolerances, lattice.two_senses[axis])
            found.append(bases[:, np.argsort(order)])
            marks.append(scores)
        score = np.concatenate(marks)
        best = np.argsort(-score, kind="stable")[:3]
        return np.concatenate(found)[best[score[best] > 0]]

    def _from_axis(
        self, q: Floats, weight: Floats, reference: Floats, attempt: Attempt, tolerances: Floats, both: bool
    ) -> tuple[Floats, Floats]:
        lengths = np.linalg.norm(reference, axis=1)
        q_rms = math.sqrt(float(np.mean(np.einsum("ij,ij->i", q, q))))
        directions = half_sphere(self.coverage / (float(lengths[0]) * q_rms))
        q32, w32 = padded(q, weight)
        score = np.empty(len(directions), dtype=np.float32)
        score_directions(directions, float(lengths[0]), q32, w32, score)
        n_refined = min(attempt.n_refined, len(score) - 1)
        top = np.argpartition(-score, n_refined)[:n_refined]
        stiffness = (0.05 / (self.shape_sigma * lengths)) ** 2
        axes = refine_axes(
            directions[top].astype(np.float64) * float(lengths[0]),
            q,
            weight,
            float(lengths[0]),
            float(stiffness[0]),
            4,
            attempt.n_axes,
        )
        n_steps = int(2.0 * math.pi * float(lengths[1]) * q_rms / self.coverage) + 16
        return complete_bases(
            axes,
            reference,
            q,
            weight,
            n_steps,
            attempt.n_rotations,
            both,
            stiffness,
            tolerances,
            self.shape_sigma,
            _ENOUGH,
        )

    def polish(self, basis: Floats, q: Floats, weight: Floats, lattice: KnownLattice, tolerance: float, stiff: bool) -> Floats:
        """Return the basis fitted to all spots near it; ``stiff``: the cell held at a quarter of the usual σ."""
        fitted = basis.copy()
        sigma = self.shape_sigma * (0.25 if stiff else 1.0)
        fit_lattice(fitted, lattice.reduced, q, weight, np.array([tolerance, tolerance, tolerance]), sigma)
        return fitted


def _choose(q: Floats, attempt: Attempt) -> NDArray[np.int64]:
    """Return the rows of the spots that an attempt uses."""
    n = min(attempt.n_spots, len(q))
    if not attempt.low_resolution:
        return np.arange(n)
    return np.sort(np.argsort(np.einsum("ij,ij->i", q, q), kind="stable")[:n])


def padded(q: Floats, weight: Floats) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return q as (3, m) and weights (m,) in single precision, m a multiple of 16, padded with weight 0."""
    m = -(-len(q) // 16) * 16
    q32, w32 = np.zeros((3, m), dtype=np.float32), np.zeros(m, dtype=np.float32)
    q32[:, : len(q)] = q.T
    w32[: len(q)] = weight
    return q32, w32


def half_sphere(step: float) -> NDArray[np.float32]:
    """Return (n, 3) unit vectors that cover a half-sphere at about ``step`` radians (a Fibonacci spiral)."""
    n = min(300_000, max(200, math.ceil(2.0 * math.pi / step**2)))
    rank = math.ceil(4.0 * math.log2(n))  # few distinct sizes, so that the spirals are made once
    return _spiral(round(2.0 ** (rank / 4.0)))


@lru_cache(maxsize=32)
def _spiral(n: int) -> NDArray[np.float32]:
    z = (np.arange(n) + 0.5) / n
    phi = np.arange(n) * (math.pi * (3.0 - math.sqrt(5.0)))
    rho = np.sqrt(1.0 - z * z)
    return np.column_stack([rho * np.cos(phi), rho * np.sin(phi), z]).astype(np.float32)
