"""Spots of known lattices, by brute force: every hkl is enumerated and kept if it is near the Ewald sphere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xfelproc.models.experiment import Beam, Detector, Panel
from xfelproc.models.tables import SpotTable

WAVELENGTH = 1.305
DISTANCE = 92.5
PIXEL = 0.075
SIZE = 2000
CENTRE = (1003.2, 998.3)

CENTRED = {
    "P": lambda h: np.ones(len(h), dtype=bool),
    "C": lambda h: (h[:, 0] + h[:, 1]) % 2 == 0,
    "I": lambda h: h.sum(axis=1) % 2 == 0,
    "F": lambda h: ((h[:, 0] + h[:, 1]) % 2 == 0) & ((h[:, 0] + h[:, 2]) % 2 == 0),
    "R": lambda h: (-h[:, 0] + h[:, 1] + h[:, 2]) % 3 == 0,
}


def detector(shift: tuple[float, float] = (0.0, 0.0)) -> Detector:
    """Return a flat detector whose beam centre is declared ``shift`` pixels off the true one."""
    origin = (-(CENTRE[0] + shift[0]) * PIXEL, (CENTRE[1] + shift[1]) * PIXEL, -DISTANCE)
    return Detector((Panel("p0", (1, 0, 0), (0, -1, 0), origin, (PIXEL, PIXEL), (SIZE, SIZE)),))


def beam() -> Beam:
    return Beam(WAVELENGTH)


def random_rotation(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a uniformly distributed rotation, by way of a random unit quaternion."""
    w, x, y, z = (v := rng.normal(size=4)) / np.linalg.norm(v)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def basis_of(cell: tuple[float, ...]) -> NDArray[np.float64]:
    """Return rows a, b, c by the law of cosines, c along z."""
    a, b, c = cell[:3]
    ca, cb, cg = np.cos(np.radians(cell[3:]))
    sb = np.sqrt(1 - cb**2)
    bx = (cg - ca * cb) / sb
    return np.array([[a * sb, 0, a * cb], [b * bx, b * np.sqrt(1 - ca**2 - bx**2), b * ca], [0, 0, c]])


def lattice_spots(
    basis: NDArray[np.float64], centring: str, rng: np.random.Generator, n_wanted: int, noise: float = 0.3, d_min: float = 2.3
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return pixel positions (n, 2) and indices (n, 3) of ``n_wanted`` spots of a crystal with rows a, b, c.

    A reflection shows with a chance that falls off as a Gaussian of its distance to the Ewald sphere (σ 0.0005 1/Å + 0.1 % |q|)
    and with resolution; it appears where its ray, from the sphere's centre through the point, meets the detector.
    """
    a_matrix = np.linalg.inv(basis)
    top = np.ceil(np.linalg.norm(basis, axis=1) / d_min).astype(int)
    grid = np.stack(np.meshgrid(*[np.arange(-t, t + 1) for t in top], indexing="ij"), axis=-1).reshape(-1, 3)
    grid = grid[CENTRED[centring](grid) & grid.any(axis=1)]
    q = grid @ a_matrix.T
    length = np.linalg.norm(q, axis=1)
    k = 1 / WAVELENGTH
    ray = q + np.array([0, 0, -k])
    off = np.linalg.norm(ray, axis=1) - k
    x = ray[:, 0] / -ray[:, 2] * DISTANCE
    y = ray[:, 1] / -ray[:, 2] * DISTANCE
    pixel = np.column_stack([x / PIXEL + CENTRE[0], -y / PIXEL + CENTRE[1]])
    chance = np.exp(-0.5 * (off / (0.0005 + 0.001 * length)) ** 2) * np.exp(-8.0 * length**2)
    seen = (length < 1 / d_min) & np.all((pixel > 0) & (pixel < SIZE), axis=1) & (ray[:, 2] < 0)
    strength = np.where(seen, chance * rng.exponential(size=len(chance)), 0.0)
    best = np.argsort(-strength)[:n_wanted]
    best = best[strength[best] > 0]
    return pixel[best] + rng.normal(scale=noise, size=(len(best), 2)), grid[best]


def random_pixels(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Return n positions, denser towards the centre as real peaks are."""
    radius = 950 * np.sqrt(rng.uniform(0.004, 1, n))
    phi = rng.uniform(0, 2 * np.pi, n)
    return np.column_stack([CENTRE[0] + radius * np.cos(phi), CENTRE[1] + radius * np.sin(phi)])


def table(pixels: NDArray[np.float64], rng: np.random.Generator) -> SpotTable:
    """Return a spot table in random order with falling signal to noise."""
    n = len(pixels)
    order = rng.permutation(n)
    snr = (60 / (1 + 0.2 * np.arange(n)) + 4)[order]
    return SpotTable(n, fast=pixels[order, 0], slow=pixels[order, 1], snr=snr, intensity=10 * snr)
