"""The models of lattices: scale, B, rotation, widths of partiality, strain; what post-refinement refines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Arrays = dict[str, NDArray[Any]]

N_FIXED = 6
"""Parameters of a lattice beside its strain: log scale, B, two rotations, two log widths."""

WRONG_CC, WRONG_QUALITY = 0.3, 20.0
"""Correlation below which and quality beyond which a lattice is none of this structure, or indexed wrongly."""


class Reason(IntEnum):
    """Why a lattice is not merged."""

    USED = 0
    FEW = 1
    """Too few observations."""
    CORRELATION = 2
    """Correlates less to the others than asked for."""
    CELL = 3
    """Another cell than the median one."""
    MAHALANOBIS = 4
    """A cell farther from the others than their scatter explains."""
    ENERGY = 5
    """Another photon energy."""
    DELTA_CC = 6
    """CC1/2 is better without it."""
    STRETCH = 7
    """CC1/2 is better without the stretch of the run that it is of."""


@dataclass(frozen=True)
class LatticeModels:
    """Models of consecutive lattices, (m,) unless said.

    An observation of the full intensity J is ``scale · exp(-b_factor / 2d²) · p · J``; p is the partiality at the excitation
    error that the lattice has when turned by ``rotation`` and strained by ``strain``.
    """

    scale: Floats
    b_factor: Floats
    """Å²."""
    rotation: Floats
    """(m, 2) about x and y of the laboratory, radians: the third, about the beam, changes no excitation error."""
    width: Floats
    """(m, 2) width of partiality at 1/d = 0 (1/Å), and its growth with 1/d."""
    strain: Floats
    """(m, k) relative changes of the reciprocal cell (`strain_shapes`); k = 0: the cell is not refined."""
    start: Floats
    """(m, 3) log scale and log widths by Wilson's statistics, to which refinement is restrained."""
    used: NDArray[np.bool_]
    reason: NDArray[np.uint8]
    """`Reason`."""
    cc: Floats
    """Correlation to the mean of the others (NaN: not known)."""
    n_used: NDArray[np.int32]
    """Observations compared to the mean of the others."""
    estimate: Floats
    """(m, 6 + k) what a lattice says of its parameters without restraint."""
    information: Floats
    """(m, 6 + k) inverse variances of that; 0: nothing."""
    quality: Floats
    """Factor on the variances of its observations beside counting, at least 1: a lattice that fits badly has little weight."""
    delta_cc_half: Floats
    """CC1/2 less that without it, when last it was determined (NaN: never)."""

    def __len__(self) -> int:
        return len(self.scale)

    @property
    def parameters(self) -> Floats:
        """(m, 6 + k) log scale, B, rotations, log widths, strains: what the kernels take."""
        logs = np.log(np.maximum(self.width, 1e-12))
        return np.column_stack([np.log(self.scale), self.b_factor, self.rotation, logs, self.strain])

    def with_parameters(self, parameters: Floats) -> LatticeModels:
        """Return the models with other parameters."""
        return replace(
            self,
            scale=np.exp(parameters[:, 0]),
            b_factor=parameters[:, 1].copy(),
            rotation=parameters[:, 2:4].copy(),
            width=np.exp(parameters[:, 4:6]),
            strain=parameters[:, N_FIXED:].copy(),
        )

    def select(self, rows: NDArray[np.int64]) -> LatticeModels:
        """Return the models of some lattices."""
        return LatticeModels(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def without(self, rows: NDArray[np.bool_], reason: Reason) -> LatticeModels:
        """Return the models with some lattices left out; those left out before keep their reason."""
        gone = rows & self.used
        return replace(self, used=self.used & ~rows, reason=np.where(gone, np.uint8(reason), self.reason).astype(np.uint8))

    def judged(self, min_cc: float | None) -> LatticeModels:
        """Return the models with the lattices left out that correlate less; those that do again come back.

        None leaves out those that do not correlate although their counts would show it: they fit too badly for noise.
        """
        low = self.cc < min_cc if min_cc is not None else (self.cc < WRONG_CC) & (self.quality > WRONG_QUALITY)  # NaN is not
        back = (self.reason == Reason.CORRELATION) & ~low
        reason = np.where(back, np.uint8(Reason.USED), self.reason).astype(np.uint8)
        return replace(self, used=self.used | back, reason=reason).without(low, Reason.CORRELATION)

    def with_influences(self, values: Floats) -> LatticeModels:
        """Return the models with the ΔCC1/2 (m,) that are known (not NaN)."""
        return replace(self, delta_cc_half=np.where(np.isfinite(values), values, self.delta_cc_half))

    def arrays(self) -> Arrays:
        """Return it as named arrays; `from_arrays` takes them back."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> LatticeModels:
        """Return what `arrays` came from."""
        return cls(**{f.name: arrays[f.name] for f in fields(cls)})


def concatenate_models(parts: Sequence[LatticeModels]) -> LatticeModels:
    """Return the models of consecutive blocks as one."""
    return LatticeModels(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(LatticeModels)})


def initial_models(scale: Floats, width: Floats, n_strains: int = 0) -> LatticeModels:
    """Return models of a scale (m,) and widths (m, 2), neither turned nor strained."""
    m = len(scale)
    start = np.column_stack([np.log(scale), np.log(np.maximum(width, 1e-12))])
    return LatticeModels(
        scale=scale,
        b_factor=np.zeros(m),
        rotation=np.zeros((m, 2)),
        width=width,
        strain=np.zeros((m, n_strains)),
        start=start,
        used=np.ones(m, dtype=bool),
        reason=np.zeros(m, dtype=np.uint8),
        cc=np.full(m, np.nan),
        n_used=np.zeros(m, dtype=np.int32),
        estimate=np.zeros((m, N_FIXED + n_strains)),
        information=np.zeros((m, N_FIXED + n_strains)),
        quality=np.ones(m),
        delta_cc_half=np.full(m, np.nan),
    )
