"""Indexed spots of lattices, as metrology takes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xfelproc.geometry.constraints import metric_basis

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
BATCH_SPOTS = 50_000


@dataclass(frozen=True)
class CrystalSpots:
    """One lattice and its indexed spots.

    ``A`` (3, 3) has columns a*, b*, c* in 1/Å; ``hkl`` (n, 3); ``panel``, ``fast``, ``slow`` (px) and the variances (px²) are (n,).
    ``key`` is a hash of the frame's identity: its last bit is the half-set.
    """

    A: Floats
    space_group: str
    wavelength: float
    hkl: Ints
    panel: Ints
    fast: Floats
    slow: Floats
    var_fast: Floats
    var_slow: Floats
    key: int = 0


@dataclass(frozen=True)
class Batch:
    """Lattices end to end, for the kernel: see `xfelproc.kernels.metrology.add_crystals`."""

    lattices: Floats
    bases: Floats
    n_bases: Ints
    symmetry: Ints
    wavelengths: Floats
    halves: Ints
    starts: NDArray[np.int64]
    hkl: Ints
    panel: Ints
    observed: Floats

    def __len__(self) -> int:
        return len(self.lattices)


def batches(crystals: Iterable[CrystalSpots], most_spots: int = BATCH_SPOTS) -> Iterator[Batch]:
    """Yield lattices end to end, of about ``most_spots`` spots each."""
    chosen: list[CrystalSpots] = []
    n = 0
    for crystal in crystals:
        chosen.append(crystal)
        n += len(crystal.panel)
        if n >= most_spots:
            yield pack(chosen)
            chosen, n = [], 0
    if chosen:
        yield pack(chosen)


def pack(crystals: list[CrystalSpots]) -> Batch:
    """Return lattices end to end.

    Raises
    ------
    ConfigError
        If a space group is not known.
    """
    symbols = sorted({crystal.space_group for crystal in crystals})
    bases, n_bases = np.zeros((len(symbols), 6, 3, 3)), np.zeros(len(symbols), dtype=np.int32)
    for row, symbol in enumerate(symbols):
        basis = metric_basis(symbol)
        bases[row, : len(basis)], n_bases[row] = basis, len(basis)
    number = {symbol: row for row, symbol in enumerate(symbols)}
    return Batch(
        lattices=np.array([crystal.A for crystal in crystals], dtype=np.float64).reshape(-1, 3, 3),
        bases=bases,
        n_bases=n_bases,
        symmetry=np.array([number[crystal.space_group] for crystal in crystals], dtype=np.int32),
        wavelengths=np.array([crystal.wavelength for crystal in crystals]),
        halves=np.array([crystal.key & 1 for crystal in crystals], dtype=np.int32),
        starts=np.concatenate([[0], np.cumsum([len(crystal.panel) for crystal in crystals])]).astype(np.int64),
        hkl=np.concatenate([np.asarray(c.hkl, dtype=np.int32).reshape(-1, 3) for c in crystals]),
        panel=np.concatenate([np.asarray(c.panel, dtype=np.int32) for c in crystals]),
        observed=np.concatenate([np.column_stack([c.fast, c.slow, c.var_fast, c.var_slow]) for c in crystals]),
    )
