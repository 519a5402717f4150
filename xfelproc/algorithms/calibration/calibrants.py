"""Powders of known d-spacings."""

from __future__ import annotations

import math

ICE_A, ICE_C = 4.497, 7.321
"""Cell of hexagonal ice below 100 K, Å (Röttger et al. 1994, Acta Cryst. B50, 644)."""

_ICE = ((1, 0, 0), (0, 0, 2), (1, 0, 1), (1, 0, 2), (1, 1, 0), (1, 0, 3), (2, 0, 0), (1, 1, 2), (2, 0, 1), (2, 0, 2), (2, 0, 3))


def _cubic(a: float, sums: tuple[int, ...]) -> tuple[float, ...]:
    return tuple(a / math.sqrt(n) for n in sums)


def _hexagonal(a: float, c: float, hkl: tuple[tuple[int, int, int], ...]) -> tuple[float, ...]:
    return tuple(1.0 / math.sqrt(4.0 / 3.0 * (h * h + h * k + k * k) / a**2 + (m / c) ** 2) for h, k, m in hkl)


CALIBRANTS: dict[str, tuple[float, ...]] = {
    "ice": _hexagonal(ICE_A, ICE_C, _ICE),
    # Huang et al. 1993, J. Appl. Cryst. 26, 180: long period 58.380 Å
    "silver behenate": tuple(58.380 / n for n in range(1, 13)),
    # NIST SRM 660c
    "LaB6": _cubic(4.156826, (1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 16, 17, 18, 19, 20, 21, 22)),
    # NIST SRM 674b
    "CeO2": _cubic(5.411651, (3, 4, 8, 11, 12, 16, 19, 20, 24, 27, 32, 35, 36, 40)),
}
"""d-spacings of the rings, Å, largest first."""
