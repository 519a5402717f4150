"""Frames and work units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.models.experiment import Beam, Crystal, Detector
from xfelproc.models.tables import FrameTable, IndexedTable, LatticeTable, ReflectionTable, SpotTable


@dataclass(frozen=True, order=True)
class FrameRef:
    """Which frame: number of the source in the manifest, index in the source (from 0). Picklable, no handle."""

    source: int
    index: int


@dataclass(frozen=True)
class Frame:
    """Pixels of one frame, with all that is needed to process them.

    ``pixels`` is a C-contiguous stack (panel, slow, fast) of uint16, int16, uint32, int32 or float32. ``mask`` (uint8, same
    shape) is 0 for good pixels, else MaskBit; it holds what does not change from frame to frame and is shared
    between frames: never write to it. Values outside ``trusted`` (panel, 2) are not measurements: below the first (or NaN) the
    pixel is bad, above the second it is saturated. Before calibration the values are raw, after it photons. ``common_mode_failed``
    is the number of groups of pixels whose common mode could not be determined. ``stages`` (same shape) is a separate array that
    tells the gain stages, as the file has it; None: there is none.
    """

    ref: FrameRef
    pixels: NDArray[Any]
    mask: NDArray[np.uint8]
    trusted: NDArray[np.float64]
    detector: Detector
    beam: Beam
    common_mode_failed: int = 0
    stages: NDArray[Any] | None = None


@dataclass(frozen=True)
class WorkUnit:
    """A run of frames, the grain of work and of the shards. Its content is a function of the input alone."""

    index: int
    frames: tuple[FrameRef, ...]


@dataclass(frozen=True)
class CellTarget:
    """What the user (or the consensus) says about the lattice: cell (Å, degrees) and space group, either may be unknown."""

    cell: tuple[float, float, float, float, float, float] | None = None
    space_group: str | None = None


@dataclass(frozen=True)
class IndexedLattice:
    """A lattice as the indexer leaves it: crystal, the spots it explains (rows of the SpotTable) and their indices (n, 3).

    ``shift`` (mm, laboratory frame) is the translation of the detector under which the indices were assigned: 0 unless the
    beam centre was so far off that it had to be searched; ``tilt`` (degrees) is
    that of `Detector.moved`. ``log10_p`` is the chance that random spots show such a lattice.
    """

    crystal: Crystal
    spots: NDArray[np.int64]
    hkl: NDArray[np.int32]
    log10_p: float
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    tilt: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class IndexingResult:
    """Lattices found on one frame, best first; ``reason`` says why there is none (or no more)."""

    lattices: tuple[IndexedLattice, ...]
    reason: str = ""


@dataclass(frozen=True)
class RefinedLattice:
    """A lattice after refinement. ``indexed`` (its ``lattice`` column is 0) holds every spot with |Δhkl| ≤ 0.3 under the model.

    ``detector`` carries the refined ``shift`` (mm) and ``tilt`` (degrees). ``rmsd`` is in px, ``rmsd_psi`` in degrees, over
    ``indexed``; ``rmsd_used`` is in px over those that outlier rejection kept. A fifth of random spots are within 0.3 of an
    index: of a frame with many spots that are not this lattice's, only the second RMSD tells how well it fits. A ``satellite`` is
    part of the crystal of another lattice of the frame: it has spots of its own, but its reflections are that lattice's.
    """

    crystal: Crystal
    detector: Detector
    shift: tuple[float, float, float]
    indexed: IndexedTable
    rmsd: float
    rmsd_psi: float
    accepted: bool
    reason: str = ""
    log10_p: float = 0.0
    rmsd_used: float = 0.0
    tilt: tuple[float, float] = (0.0, 0.0)
    satellite: bool = False


@dataclass(frozen=True)
class Control:
    """What was integrated halfway between reflections: lattice (n,), index of the reflection beside (n, 3), intensity (n,)."""

    lattice: NDArray[np.int32]
    hkl: NDArray[np.int32]
    intensity: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.lattice)


@dataclass(frozen=True)
class UnitResult:
    """All that a work unit yields; row numbers refer to the tables of the same unit."""

    frames: FrameTable
    spots: SpotTable
    lattices: LatticeTable
    indexed: IndexedTable
    reflections: ReflectionTable
    control: Control | None = None
    """Where it was asked for; not read back with the tables, see `io.shards.read_control`."""


@dataclass(frozen=True)
class IntegrationResult:
    """Integration of all lattices of a frame: crystals with their mosaicity, the resolution of each, and the observations.

    The ``lattice`` column of ``reflections`` numbers the lattices of this frame from 0.
    """

    crystals: tuple[Crystal, ...]
    d_min: tuple[float, ...]
    reflections: ReflectionTable
    control: Control | None = None
