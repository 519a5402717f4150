"""Lattices with their observations, as scaling and post-refinement take them: one leaf of a run's store.

Observations come lattice by lattice; each knows its unique reflection by a row of a list that all leaves share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.observations import Observations
from xfelproc.algorithms.merging.reduction import Indices, inverse_d2, pack, to_asu, unpack

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class UniqueReflections:
    """All unique reflections that were observed, sorted by h, k, l; a block's column ``group`` is a row here.

    ``hkl`` (n, 3) are indices in the asymmetric unit, ``inverse_d2`` (n,) is 1/d² (1/Å²) in the common cell, ``centric`` (n,)
    tells which are their own Friedel mates; ``cell`` (6,) is the common cell, Å and degrees.
    """

    hkl: Indices
    inverse_d2: Floats
    centric: NDArray[np.bool_]
    cell: Floats

    @classmethod
    def of(cls, keys: NDArray[np.int64], cell: Sequence[float], group: gemmi.SpaceGroup) -> UniqueReflections:
        """Return the list of packed indices (`reduction.pack`), in any order and with repeats, in a cell (Å, degrees)."""
        hkl = unpack(np.unique(keys))
        centric = np.asarray(group.operations().centric_flag_array(hkl), dtype=bool).reshape(-1)
        return cls(hkl, inverse_d2(hkl, cell), centric, np.asarray(cell, dtype=np.float64))

    def __len__(self) -> int:
        return len(self.hkl)

    def rows(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return the row of each packed index.

        Raises
        ------
        ValueError
            If an index is not in the list.
        """
        own = pack(self.hkl)
        found = np.searchsorted(own, keys)
        if len(keys) and (not len(own) or not np.array_equal(own[np.minimum(found, len(own) - 1)], keys)):
            raise ValueError("an observation's index is not in the list of unique reflections")
        return found.astype(np.int32)

    def arrays(self) -> Arrays:
        """Return it as named arrays; `from_arrays` takes them back."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> UniqueReflections:
        """Return what `arrays` came from."""
        return cls(**{f.name: arrays[f.name] for f in fields(cls)})


@dataclass(frozen=True)
class LatticeBlock:
    """Consecutive lattices in memory. Columns of observations are (n,), of lattices (m,).

    ``intensity`` is divided by ``polarization``; its variance is ``variance_fixed + variance_gain · expected intensity``
    (`observations.Observations`). Lattice i has the observations ``starts[i]`` to ``starts[i + 1]``.
    """

    group: NDArray[np.int32]
    """Row of `UniqueReflections`."""
    isym: NDArray[np.int16]
    """Odd for I(+), even for I(-)."""
    hkl: NDArray[np.int16]
    """(n, 3) as observed."""
    intensity: Singles
    variance_fixed: Singles
    variance_gain: Singles
    excitation: Singles
    """|s0 + A h| - 1/λ, 1/Å."""
    partiality: Singles
    """As integration gives it."""
    polarization: Singles
    panel: NDArray[np.int16]
    fast: Singles
    slow: Singles
    flags: NDArray[np.uint16]
    starts: NDArray[np.int64]
    """(m + 1,)."""
    A: Floats
    """(m, 3, 3) columns a*, b*, c*, 1/Å, laboratory frame; NaN where there is no orientation."""
    cell: Floats
    """(m, 6) Å, degrees."""
    wavelength: Floats
    bandwidth: Floats
    """Relative, FWHM."""
    half: NDArray[np.uint8]
    unit: NDArray[np.int32]
    number: NDArray[np.int32]
    """Of the lattice in its unit's shard."""
    lattice_group: NDArray[np.int16]
    """What is merged apart: pump on or off, dose; 0 where there is one group."""

    def __len__(self) -> int:
        return len(self.group)

    @property
    def n_lattices(self) -> int:
        """Number of lattices."""
        return len(self.starts) - 1

    @property
    def lattice(self) -> NDArray[np.int64]:
        """(n,) lattice of each observation, counted in the block."""
        return np.repeat(np.arange(self.n_lattices), np.diff(self.starts))

    def counts(self, rows: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return how many of each lattice's observations are among some (n,), (m,)."""
        before = np.concatenate([[0], np.cumsum(rows)])
        found: NDArray[np.int64] = before[self.starts[1:]] - before[self.starts[:-1]]
        return found

    def select_lattices(self, rows: NDArray[np.int64]) -> LatticeBlock:
        """Return some lattices, in the order given."""
        counts = np.diff(self.starts)[rows]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        index = np.repeat(self.starts[rows] - starts[:-1], counts) + np.arange(starts[-1])
        columns = {name: getattr(self, name)[index] for name in OBSERVATION_COLUMNS}
        return LatticeBlock(**columns, starts=starts, **{name: getattr(self, name)[rows] for name in LATTICE_COLUMNS})

    def select(self, keep: NDArray[np.bool_]) -> LatticeBlock:
        """Return some observations (n,) of all lattices."""
        counts = np.bincount(self.lattice[keep], minlength=self.n_lattices)
        columns = {name: getattr(self, name)[keep] for name in OBSERVATION_COLUMNS}
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return LatticeBlock(**columns, starts=starts, **{name: getattr(self, name) for name in LATTICE_COLUMNS})

    def arrays(self) -> Arrays:
        """Return it as named arrays; `from_arrays` takes them back."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> LatticeBlock:
        """Return what `arrays` came from."""
        return cls(**{f.name: arrays[f.name] for f in fields(cls)})


LATTICE_COLUMNS = ("A", "cell", "wavelength", "bandwidth", "half", "unit", "number", "lattice_group")
OBSERVATION_COLUMNS = tuple(f.name for f in fields(LatticeBlock) if f.name not in (*LATTICE_COLUMNS, "starts"))


@dataclass(frozen=True)
class LatticeFacts:
    """What is known of lattices beside their observations, (m, ...); see `LatticeBlock`."""

    A: Floats
    cell: Floats
    wavelength: Floats
    bandwidth: Floats
    unit: NDArray[np.int32]
    number: NDArray[np.int32]
    lattice_group: NDArray[np.int16]

    @classmethod
    def unknown(cls, n_lattices: int, cell: Sequence[float]) -> LatticeFacts:
        """Return facts of lattices without orientation: observations that were scaled elsewhere, or are full."""
        zeros = np.zeros(n_lattices, dtype=np.int32)
        return cls(
            A=np.full((n_lattices, 3, 3), np.nan),
            cell=np.tile(np.asarray(cell, dtype=np.float64), (n_lattices, 1)),
            wavelength=np.ones(n_lattices),
            bandwidth=np.zeros(n_lattices),
            unit=zeros,
            number=np.arange(n_lattices, dtype=np.int32),
            lattice_group=zeros.astype(np.int16),
        )


def keys_of(hkl: NDArray[np.int32], group: gemmi.SpaceGroup) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the packed index in the asymmetric unit, and isym, of each index (n, 3)."""
    reduced, isym = to_asu(hkl, group)
    return pack(reduced), isym


def make_block(observations: Observations, facts: LatticeFacts, unique: UniqueReflections, group: gemmi.SpaceGroup) -> LatticeBlock:
    """Return observations (in lattice order, without systematic absences) as a block.

    Raises
    ------
    ValueError
        If an index is not among ``unique``, or beyond ±32767.
    """
    if len(observations) and np.abs(observations.hkl).max() > np.iinfo(np.int16).max:
        raise ValueError("an index is beyond 32767")
    keys, isym = keys_of(observations.hkl, group)
    counts = np.bincount(observations.lattice, minlength=observations.n_lattices)
    return LatticeBlock(
        group=unique.rows(keys),
        isym=isym.astype(np.int16),
        hkl=observations.hkl.astype(np.int16),
        **{name: getattr(observations, name).astype(np.float32) for name in _SINGLES},
        panel=observations.panel.astype(np.int16),
        fast=observations.fast,
        slow=observations.slow,
        flags=observations.flags,
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        half=observations.half,
        **{f.name: getattr(facts, f.name) for f in fields(facts)},
    )


_SINGLES = ("intensity", "variance_fixed", "variance_gain", "excitation", "partiality", "polarization")


def concatenate_blocks(parts: Sequence[LatticeBlock]) -> LatticeBlock:
    """Return consecutive blocks (at least one, of the same list of unique reflections) as one."""
    ends = np.concatenate([[0], np.cumsum([len(p) for p in parts])])
    starts = np.concatenate([*(p.starts[:-1] + end for p, end in zip(parts, ends[:-1], strict=True)), ends[-1:]])
    joined = {name: np.concatenate([getattr(p, name) for p in parts]) for name in (*OBSERVATION_COLUMNS, *LATTICE_COLUMNS)}
    return LatticeBlock(**joined, starts=starts.astype(np.int64))
