"""Observations as merging wants them: corrected for polarisation, flat over all lattices."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.panels import PanelLimits
from xfelproc.algorithms.merging.settings import Merge
from xfelproc.kernels.signal_limits import signal_limits
from xfelproc.models.conventions import ReflectionFlag
from xfelproc.models.tables import ReflectionTable

Floats = NDArray[np.float64]


def half_set(source: str, index: int) -> int:
    """Return the half-set, 0 or 1, of a frame: a bit of a hash of its identity, so that no order of processing matters.

    ``source`` is what identifies the file wherever it lies (its name in the manifest, not its folder), ``index`` the frame in it.
    """
    return hashlib.blake2b(f"{source}\x00{index}".encode(), digest_size=1).digest()[0] & 1


@dataclass(frozen=True)
class Observations:
    """Usable observations of many lattices, in lattice order.

    ``intensity`` is divided by ``polarization``. The variance is ``variance_fixed + variance_gain · expected intensity``: the
    first is all counting noise but the reflection's own, which the second gives from the expectation.
    """

    lattice: NDArray[np.int64]
    hkl: NDArray[np.int32]
    intensity: Floats
    variance_fixed: Floats
    variance_gain: Floats
    excitation: Floats
    partiality: Floats
    inverse_d2: Floats
    polarization: Floats
    panel: NDArray[np.int32]
    fast: NDArray[np.float32]
    slow: NDArray[np.float32]
    flags: NDArray[np.uint16]
    half: NDArray[np.uint8]
    """(n_lattices,) half-set of each lattice's frame."""
    n_lattices: int

    def __len__(self) -> int:
        return len(self.lattice)

    def select(self, index: NDArray[np.bool_] | NDArray[np.int64]) -> Observations:
        """Return some rows; the lattices stay as they are."""
        rows = {f.name: getattr(self, f.name)[index] for f in fields(self) if f.name not in ("half", "n_lattices")}
        return Observations(**rows, half=self.half, n_lattices=self.n_lattices)


def usable_rows(reflections: ReflectionTable, settings: Merge) -> NDArray[np.int64]:
    """Return the rows that merging can use, by lattice."""
    d, flags = reflections["d"], reflections["flags"]
    good = (flags & int(ReflectionFlag.INTEGRATED) != 0) & (flags & settings.excluded_flags == 0)
    with np.errstate(invalid="ignore"):
        good &= np.isfinite(reflections["intensity"]) & np.isfinite(reflections["sigma"]) & (reflections["sigma"] > 0)
        good &= (reflections["polarization"] > 0) & (d > 0) & np.isfinite(reflections["excitation"])
        if settings.d_min is not None:
            good &= d.astype(np.float64) >= settings.d_min
        if settings.d_max is not None:
            good &= d.astype(np.float64) <= settings.d_max
    rows = np.flatnonzero(good)
    return rows[np.argsort(reflections["lattice"][rows], kind="stable")]


def chosen_rows(reflections: ReflectionTable, settings: Merge, panels: PanelLimits) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows that are to be merged, by lattice, and how many are left out (3,): flagged, on panels, near edges."""
    rows = usable_rows(reflections, settings)
    lost = np.array([len(reflections) - len(rows), 0, 0])
    if panels.excluded or panels.edge:
        outside, near = panels.taken(reflections, rows)
        rows, lost[1:] = rows[~(outside | near)], (np.count_nonzero(outside), np.count_nonzero(near))
    return rows, lost


def with_signal(observations: Observations, cut: float | None) -> tuple[Observations, int]:
    """Return the observations to the resolution where their lattice's mean I/σ falls below a cut (None: all), and how many went.

    The rows must be in lattice order; see `kernels.signal_limits`.
    """
    if cut is None or not len(observations):
        return observations, 0
    variance = observations.variance_fixed + observations.variance_gain * np.maximum(observations.intensity, 0.0)
    counts = np.bincount(observations.lattice, minlength=observations.n_lattices)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    limits = signal_limits(starts, observations.inverse_d2, observations.intensity / np.sqrt(np.maximum(variance, 1e-300)), cut)
    keep = observations.inverse_d2 <= limits[observations.lattice]
    return observations.select(keep), int(np.count_nonzero(~keep))


def corrected(reflections: ReflectionTable, half: NDArray[np.uint8]) -> Observations:
    """Return rows that are all usable as observations, in their order; ``half`` is that of `prepare`.

    Notes
    -----
    The standard deviation of integration holds the counts of the reflection itself, ``σ² = I + rest`` for photons: the rest is
    kept, the own part comes from the merged mean later. Where σ² < I (intensities not in photons) σ² is kept whole.
    """
    i, v = reflections["intensity"].astype(np.float64), reflections["sigma"].astype(np.float64) ** 2
    p = reflections["polarization"].astype(np.float64)
    own = np.maximum(i, 0.0)
    photons = v > own
    return Observations(
        lattice=reflections["lattice"].astype(np.int64),
        hkl=np.ascontiguousarray(reflections["hkl"]),
        intensity=i / p,
        variance_fixed=np.where(photons, v - own, v) / p**2,
        variance_gain=np.where(photons, 1.0, 0.0) / p,
        excitation=reflections["excitation"].astype(np.float64),
        partiality=reflections["partiality"].astype(np.float64),
        inverse_d2=1.0 / reflections["d"].astype(np.float64) ** 2,
        polarization=p,
        panel=reflections["panel"],
        fast=reflections["fast"].astype(np.float32),
        slow=reflections["slow"].astype(np.float32),
        flags=reflections["flags"],
        half=np.asarray(half, dtype=np.uint8),
        n_lattices=len(half),
    )


def prepare(reflections: ReflectionTable, half: NDArray[np.uint8], settings: Merge) -> Observations:
    """Return the usable observations of one shard.

    Parameters
    ----------
    reflections
        Integrated reflections; the column ``lattice`` counts the shard's lattices.
    half
        (n,) half-set of each of the shard's lattices, see `half_set`.
    settings
        Limits and flags.
    """
    usable = reflections.select(chosen_rows(reflections, settings, PanelLimits.of(settings, None))[0])
    return with_signal(corrected(usable, half), settings.significance)[0]


def concatenate(parts: Sequence[Observations]) -> Observations:
    """Return the observations of consecutive shards as one; lattices are numbered on."""
    if not parts:
        return prepare(ReflectionTable(0), np.zeros(0, dtype=np.uint8), Merge())
    offsets = np.cumsum([0] + [p.n_lattices for p in parts])
    columns = {
        f.name: np.concatenate([getattr(p, f.name) for p in parts])
        for f in fields(Observations)
        if f.name not in ("lattice", "n_lattices")
    }
    lattice = np.concatenate([p.lattice + offset for p, offset in zip(parts, offsets[:-1], strict=True)])
    return Observations(lattice=lattice, **columns, n_lattices=int(offsets[-1]))


def from_scaled(
    hkl: NDArray[np.int32],
    intensity: Floats,
    sigma: Floats,
    lattice: NDArray[np.int64],
    inverse_d2: Floats,
    half: NDArray[np.uint8],
) -> Observations:
    """Return observations that were integrated and scaled elsewhere (an unmerged MTZ, XDS_ASCII): full, their σ taken as given.

    Parameters
    ----------
    hkl, intensity, sigma, inverse_d2
        One row an observation.
    lattice
        Number of the batch or sweep of each, from 0; rows need not be sorted.
    half
        (n_lattices,) half-set of each.
    """
    order = np.argsort(lattice, kind="stable")
    n = len(order)
    return Observations(
        lattice=lattice[order].astype(np.int64),
        hkl=np.ascontiguousarray(hkl[order], dtype=np.int32),
        intensity=intensity[order].astype(np.float64),
        variance_fixed=sigma[order].astype(np.float64) ** 2,
        variance_gain=np.zeros(n),
        excitation=np.zeros(n),
        partiality=np.ones(n),
        inverse_d2=inverse_d2[order].astype(np.float64),
        polarization=np.ones(n),
        panel=np.zeros(n, dtype=np.int32),
        fast=np.zeros(n, dtype=np.float32),
        slow=np.zeros(n, dtype=np.float32),
        flags=np.full(n, int(ReflectionFlag.INTEGRATED), dtype=np.uint16),
        half=np.asarray(half, dtype=np.uint8),
        n_lattices=len(half),
    )
