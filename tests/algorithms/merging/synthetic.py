"""Observations from true intensities by formulas of their own: for the tests and the benchmark of merging."""

from __future__ import annotations

from dataclasses import dataclass

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.models.conventions import ReflectionFlag
from xfelproc.models.tables import ReflectionTable

CELL = (79.1, 79.1, 38.0, 90.0, 90.0, 90.0)


@dataclass(frozen=True)
class Truth:
    hkl: NDArray[np.int32]
    intensity: NDArray[np.float64]
    scale: NDArray[np.float64]
    b_factor: NDArray[np.float64]
    width: float
    slope: float

    def lookup(self, hkl: NDArray[np.int32]) -> NDArray[np.float64]:
        table = {tuple(h): v for h, v in zip(self.hkl.tolist(), self.intensity.tolist(), strict=True)}
        return np.array([table[tuple(h)] for h in hkl.tolist()])


def observe(
    n_lattices: int = 60,
    n_each: int = 400,
    space_group: str = "P 43 21 2",
    d_min: float = 2.5,
    *,
    seed: int = 1,
    width: float = 4e-4,
    slope: float = 4e-4,
    background: float = 80.0,
    level: float = 400.0,
    wrong_lattices: int = 0,
    outliers: int = 0,
    draw: int | None = None,
) -> tuple[ReflectionTable, Truth]:
    """Draw reflections at random, every equivalent as likely, with Poisson noise; wrong lattices and gross outliers at will.

    ``draw`` is a seed of all but the true intensities.
    """
    rng = np.random.default_rng(seed)
    group = gemmi.SpaceGroup(space_group)
    asu = np.asarray(gemmi.make_miller_array(gemmi.UnitCell(*CELL), group, d_min, 30.0), dtype=np.int32)
    inverse_d2 = (asu[:, 0] ** 2 + asu[:, 1] ** 2) / CELL[0] ** 2 + asu[:, 2] ** 2 / CELL[2] ** 2
    intensity = level * np.exp(-10.0 * inverse_d2) * rng.exponential(size=len(asu))
    rng = rng if draw is None else np.random.default_rng([seed, draw])
    truth = Truth(
        asu,
        intensity,
        np.exp(rng.normal(0.0, 0.6, n_lattices)),
        rng.normal(0.0, 4.0, n_lattices),
        width,
        slope,
    )
    rotations = np.array([np.array(op.rot) // op.DEN for op in group.operations().sym_ops])
    lattice = np.repeat(np.arange(n_lattices), n_each)
    pick = rng.integers(len(asu), size=len(lattice))
    pick[lattice < wrong_lattices] = rng.permutation(pick[lattice < wrong_lattices])
    signs = rng.choice([-1, 1], size=(len(lattice), 1))
    hkl = signs * np.einsum("ni,nij->nj", asu[pick], rotations[rng.integers(len(rotations), size=len(lattice))])
    true = truth.intensity[pick]
    wrong = lattice < wrong_lattices
    true[wrong] = rng.permutation(true[wrong])
    s2 = inverse_d2[pick]
    excitation = rng.uniform(-1.5e-3, 1.5e-3, len(lattice))
    spread = width**2 + slope**2 * s2
    partiality = np.exp(-0.5 * excitation**2 / spread)
    polarization = rng.uniform(0.6, 1.0, len(lattice))
    # the same reflection over a wider range of the excitation error is weaker at its middle
    height = width / np.sqrt(spread)
    expected = truth.scale[lattice] * np.exp(-0.5 * truth.b_factor[lattice] * s2) * height * partiality * polarization * true
    counts = rng.poisson(expected) + rng.poisson(background, len(lattice)) - background
    if outliers:
        counts[rng.choice(np.flatnonzero(~wrong), outliers, replace=False)] += 200 * level
    table = ReflectionTable(
        None,
        lattice=lattice,
        hkl=hkl,
        intensity=counts,
        sigma=np.sqrt(np.maximum(counts + 2 * background, background)),
        d=1 / np.sqrt(s2),
        excitation=excitation,
        partiality=partiality,
        polarization=polarization,
        flags=np.full(len(lattice), int(ReflectionFlag.INTEGRATED)),
    )
    return table, truth


def halves(n_lattices: int) -> NDArray[np.uint8]:
    return (np.arange(n_lattices) % 2).astype(np.uint8)
