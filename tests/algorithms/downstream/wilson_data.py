"""Merged intensities that follow Wilson's statistics, with known B, anisotropy, twinning and noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.geometry.cells import b_matrix
from xfelproc.geometry.miller import find_space_group, pack, possible_reflections, to_asu
from xfelproc.models.tables import MergedTable

Floats = NDArray[np.float64]
RESIDUE = {"C": 5.0, "H": 8.0, "N": 1.35, "O": 1.5, "S": 0.05}


@dataclass(frozen=True)
class Simulated:
    merged: MergedTable
    truth: Floats
    """True intensity of each row, twinned where that was asked for."""
    cell: tuple[float, ...]
    group: gemmi.SpaceGroup


def form_factors(s2: Floats) -> Floats:
    grid = np.linspace(0.0, s2.max(), 300)
    power = [sum(n * gemmi.Element(e).it92.calculate_sf(x / 4) ** 2 for e, n in RESIDUE.items()) for x in grid]
    return np.interp(s2, grid, power)


def simulated(
    cell: Sequence[float],
    space_group: str,
    d_min: float = 2.0,
    b_factor: float = 25.0,
    delta_b: Any = None,
    relative_noise: float = 0.03,
    noise: float = 0.01,
    twin: tuple[int, float] | None = None,
    seed: int = 0,
) -> Simulated:
    """Intensities drawn by `delta_b` (3, 3) in Å² and twinned by (number of the law, fraction).

    ``noise`` is in units of the mean intensity at half the resolution; ``relative_noise`` of each intensity.
    """
    rng, group = np.random.default_rng(seed), find_space_group(space_group)
    hkl = possible_reflections(cell, group, d_min, 40.0)
    q = hkl @ b_matrix(cell).T
    s2 = np.sum(q * q, axis=1)
    centric = group.operations().centric_flag_array(hkl)
    epsilon = group.operations().epsilon_factor_without_centering_array(hkl)
    mean = form_factors(s2) * np.exp(-0.5 * b_factor * s2)
    if delta_b is not None:
        mean = mean * np.exp(-0.5 * np.einsum("ij,jk,ik->i", q, np.asarray(delta_b), q))
    truth = epsilon * mean * np.where(centric, rng.standard_normal(len(hkl)) ** 2, rng.exponential(size=len(hkl)))
    if twin is not None:
        law, fraction = twin
        op = gemmi.find_twin_laws(gemmi.UnitCell(*cell), group, 3.0, False)[law]
        mate, _ = to_asu(np.rint(hkl @ (np.array(op.rot) / op.DEN)).astype(np.int32), group)
        order = np.argsort(pack(hkl))
        row = order[np.minimum(np.searchsorted(pack(hkl)[order], pack(mate)), len(hkl) - 1)]
        seen = np.all(hkl[row] == mate, axis=1)  # not all at the edge of a lattice that misses the law a little
        truth = np.where(seen, (1.0 - fraction) * truth + fraction * truth[row], truth)
    level = float(mean[s2 < 0.5 / d_min**2].mean())
    sigma = np.hypot(relative_noise * truth, noise * level)
    intensity = truth + sigma * rng.standard_normal(len(hkl))
    return Simulated(table(hkl, s2**-0.5, intensity, sigma, centric, rng), truth, tuple(cell), group)


def table(hkl: Any, d: Floats, intensity: Floats, sigma: Floats, centric: Any, rng: np.random.Generator) -> MergedTable:
    n = len(hkl)
    plus, minus = (intensity + sigma * rng.standard_normal(n) for _ in range(2))
    return MergedTable(
        None,
        hkl=hkl,
        d=d,
        intensity=intensity,
        sigma=sigma,
        multiplicity=np.full(n, 10),
        intensity_plus=np.where(centric, intensity, plus),
        sigma_plus=np.where(centric, sigma, 1.4 * sigma),
        n_plus=np.where(centric, 10, 5),
        intensity_minus=np.where(centric, np.nan, minus),
        sigma_minus=np.where(centric, np.nan, 1.4 * sigma),
        n_minus=np.where(centric, 0, 5),
        half1=intensity + 1.4 * sigma * rng.standard_normal(n),
        half2=intensity + 1.4 * sigma * rng.standard_normal(n),
        sigma_half1=1.4 * sigma,
        sigma_half2=1.4 * sigma,
        n_half1=np.full(n, 5),
        n_half2=np.full(n, 5),
        centric=centric,
        free=np.arange(n) % 20,
    )
