"""Observations of lattices that are indexed in one of several settings, by formulas of their own."""

from __future__ import annotations

from dataclasses import dataclass

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.observations import Observations

CASES = {
    "P 63": (60.0, 60.0, 90.0, 90.0, 90.0, 120.0),
    "P 3": (60.0, 60.0, 90.0, 90.0, 90.0, 120.0),
    "P 4": (60.0, 60.0, 90.0, 90.0, 90.0, 90.0),
    "C 1 2 1": (100.0, 50.0, 60.0, 90.0, 90.0 + float(np.degrees(np.arcsin(100.0 / 120.0))), 90.0),
    "P 1": (40.0, 50.0, 60.0, 80.0, 95.0, 100.0),
    "P 1 21 1": (50.0, 60.0, 80.0, 90.0, 90.2, 90.0),
    "P 21 21 21": (50.0, 50.2, 80.0, 90.0, 90.0, 90.0),
}


@dataclass(frozen=True)
class Drawn:
    observations: Observations
    setting: NDArray[np.int64]
    """The operator (among those given) that takes the indices of each lattice to the crystal's own."""


def key(hkl: NDArray[np.int64], rotations: NDArray[np.int64]) -> NDArray[np.int64]:
    both = np.concatenate([np.einsum("nj,mjk->mnk", hkl, rotations), -np.einsum("nj,mjk->mnk", hkl, rotations)])
    return ((both[..., 0] + 500) * 1_000_000 + (both[..., 1] + 500) * 1000 + both[..., 2] + 500).max(axis=0)


def draw(
    space_group: str,
    operators: NDArray[np.float64],
    n_lattices: int = 1000,
    n_each: int = 60,
    d_min: float = 4.0,
    *,
    seed: int = 1,
    cell: tuple[float, ...] | None = None,
    weights: tuple[float, ...] | None = None,
    level: float = 300.0,
    background: float = 60.0,
    misjudged: float = 0.25,
    unrelated: float = 0.0,
    twinned: float = 0.0,
    noise: bool = False,
    signal: float = 1.0,
) -> Drawn:
    """Draw reflections of crystals, each indexed in a setting at random.

    ``operators`` (k, 3, 3) act on row vectors; ``weights`` are the shares of their settings; ``misjudged`` is the spread of the
    logarithm of what no model knows of an intensity; ``unrelated`` the share of lattices with intensities of their own,
    ``twinned`` the fraction of each crystal in the first other setting; ``noise``: no crystal has anything to do with another.
    """
    rng = np.random.default_rng(seed)
    group, unit_cell = gemmi.SpaceGroup(space_group), gemmi.UnitCell(*(cell or CASES[space_group]))
    symmetry = group.operations().derive_symmorphic()
    rotations = np.array([np.array(op.rot) // op.DEN for op in symmetry.sym_ops])
    asu = np.asarray(gemmi.make_miller_array(unit_cell, group, d_min, 30.0), dtype=np.int64)
    n = n_lattices * n_each
    lattice = np.repeat(np.arange(n_lattices), n_each)
    hkl = np.einsum("nj,njk->nk", asu[rng.integers(len(asu), size=n)], rotations[rng.integers(len(rotations), size=n)])
    hkl *= rng.choice([-1, 1], size=(n, 1))
    inverse_d2 = np.array(unit_cell.calculate_1_d2_array(hkl.astype(np.int32)))
    setting = rng.choice(len(operators), size=n_lattices, p=weights)

    def intensities(where: NDArray[np.int64], salt: NDArray[np.int64] | int) -> NDArray[np.float64]:
        number = key(where, rotations).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.asarray(salt).astype(np.uint64)
        for shift in (30, 27, 31):
            number = (number ^ (number >> np.uint64(shift))) * np.uint64(0xBF58476D1CE4E5B9)
        return -np.log((number >> np.uint64(11)).astype(float) / 2.0**53 + 1e-12)

    salt = np.where(rng.random(n_lattices) < unrelated, np.arange(n_lattices) + 7, 0) if not noise else np.arange(n_lattices) + 7
    full = intensities(np.rint(np.einsum("nj,njk->nk", hkl, operators[setting[lattice]])).astype(np.int64), salt[lattice])
    if twinned:
        other = np.rint(np.einsum("nj,njk,kl->nl", hkl, operators[setting[lattice]], operators[1])).astype(np.int64)
        full = (1.0 - twinned) * full + twinned * intensities(other, salt[lattice])
    scale = level * np.exp(rng.normal(0.0, 0.5, n_lattices))
    b = rng.normal(15.0, 4.0, n_lattices)
    excitation = rng.normal(0.0, 6e-4, n)
    width = 5e-4 * np.exp(rng.normal(0.0, 0.15, n_lattices))[lattice]
    partiality = np.exp(-0.5 * (excitation / width) ** 2)
    expected = scale[lattice] * np.exp(-0.5 * b[lattice] * inverse_d2) * partiality * full
    expected *= np.exp(rng.normal(0.0, misjudged, n)) * signal
    counts = rng.poisson(expected) + rng.poisson(background, n) - background
    observations = Observations(
        lattice=lattice,
        hkl=hkl.astype(np.int32),
        intensity=counts.astype(float),
        variance_fixed=np.full(n, 2.0 * background),
        variance_gain=np.ones(n),
        excitation=excitation,
        partiality=np.ones(n),
        inverse_d2=inverse_d2,
        polarization=np.ones(n),
        panel=np.zeros(n, dtype=np.int32),
        fast=np.zeros(n, dtype=np.float32),
        slow=np.zeros(n, dtype=np.float32),
        flags=np.ones(n, dtype=np.uint16),
        half=np.zeros(n_lattices, dtype=np.uint8),
        n_lattices=n_lattices,
    )
    return Drawn(observations, setting)
