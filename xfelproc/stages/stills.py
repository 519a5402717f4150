"""One still, from raw pixels to integrated lattices: pure, no I/O."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from xfelproc.models.calibration import DetectorConstants
from xfelproc.models.conventions import FrameStatus
from xfelproc.models.experiment import Beam, Crystal, Detector
from xfelproc.models.frames import (
    CellTarget,
    Control,
    Frame,
    FrameRef,
    IndexedLattice,
    IndexingResult,
    IntegrationResult,
    RefinedLattice,
    UnitResult,
)
from xfelproc.models.tables import FrameTable, IndexedTable, LatticeTable, ReflectionTable, SpotTable

STEPS = ("read", "calibrate", "find", "index", "refine", "integrate")


class Calibrator(Protocol):
    """Section ``[calibrate]``."""

    def constants(
        self,
        detector: Detector,
        static_mask: NDArray[np.uint8],
        dark: NDArray[Any] | None = None,
        gain: NDArray[Any] | None = None,
        calibration: DetectorConstants | None = None,
    ) -> Any:
        """Return what `apply` needs, made once a detector."""

    def apply(self, frame: Frame, constants: Any) -> Frame:
        """Return the frame in photons."""


class Finder(Protocol):
    """Section ``[spots]``."""

    def find(self, frame: Frame) -> SpotTable:
        """Return the spots of a calibrated frame."""

    def judge(self, spots: SpotTable) -> tuple[bool, str]:
        """Return whether the frame is a hit, and why (not)."""


class Indexer(Protocol):
    """Section ``[index]``."""

    def index(self, spots: SpotTable, detector: Detector, beam: Beam, target: CellTarget) -> IndexingResult:
        """Return the lattices of a frame."""


class Refiner(Protocol):
    """Section ``[refine]``."""

    def refine(self, lattice: IndexedLattice, spots: SpotTable, detector: Detector, beam: Beam) -> RefinedLattice:
        """Return a lattice refined on all spots."""

    def separate(
        self, lattices: Sequence[RefinedLattice], spots: SpotTable, detector: Detector, beam: Beam
    ) -> tuple[RefinedLattice, ...]:
        """Return several lattices refined again, each against its own spots."""


class Integrator(Protocol):
    """Section ``[integrate]``."""

    def integrate(self, frame: Frame, lattices: Sequence[RefinedLattice], spots: SpotTable) -> IntegrationResult:
        """Return predicted and integrated reflections."""


@dataclass(frozen=True)
class Stills:
    """The steps a still goes through; without ``integrate`` it stops after refinement."""

    calibrate: Calibrator
    spots: Finder
    index: Indexer
    refine: Refiner
    integrate: Integrator | None
    target: CellTarget


@dataclass(frozen=True)
class StillResult:
    """What one frame yields. ``times`` are CPU milliseconds of the steps after reading."""

    status: FrameStatus
    reason: str
    spots: SpotTable
    wavelength: float = 0.0
    lattices: tuple[RefinedLattice, ...] = ()
    integration: IntegrationResult | None = None
    times: tuple[float, ...] = (0.0,) * (len(STEPS) - 1)
    common_mode_failed: int = 0


class _Clock:
    """CPU time of this process since the last call, per step."""

    def __init__(self) -> None:
        self.times = [0.0] * (len(STEPS) - 1)
        self._last = time.process_time()

    def step(self, number: int) -> None:
        now = time.process_time()
        self.times[number] += 1e3 * (now - self._last)
        self._last = now


def process(stills: Stills, frame: Frame, constants: Any) -> tuple[StillResult, Frame]:
    """Process one frame; return what it yields, and the calibrated frame."""
    clock = _Clock()
    frame = stills.calibrate.apply(frame, constants)
    clock.step(0)
    spots = stills.spots.find(frame)
    hit, reason = stills.spots.judge(spots)
    clock.step(1)
    failed = frame.common_mode_failed
    base = StillResult(FrameStatus.BLANK, reason, spots, frame.beam.wavelength, times=tuple(clock.times), common_mode_failed=failed)
    if not hit:
        return base, frame
    found = stills.index.index(spots, frame.detector, frame.beam, stills.target)
    clock.step(2)
    refined, refused = refine_found(stills, found.lattices, spots, frame.detector, frame.beam)
    clock.step(3)
    if not refined:
        reason = refused or found.reason or "no lattice found"
        return replace(base, status=FrameStatus.HIT, reason=reason, times=tuple(clock.times)), frame
    indexed = replace(base, status=FrameStatus.INDEXED, reason="", lattices=refined, times=tuple(clock.times))
    if stills.integrate is None:
        return indexed, frame
    integration = stills.integrate.integrate(frame, refined, spots)
    clock.step(4)
    if len(integration.reflections) == 0:
        reason = "no reflection is predicted on the detector"
        return replace(indexed, reason=reason, integration=integration, times=tuple(clock.times)), frame
    return replace(indexed, status=FrameStatus.INTEGRATED, integration=integration, times=tuple(clock.times)), frame


def refine_found(
    stills: Stills, found: Sequence[IndexedLattice], spots: SpotTable, detector: Detector, beam: Beam
) -> tuple[tuple[RefinedLattice, ...], str]:
    """Return the lattices that refinement accepts, and why it refused the first of the others."""
    refined = [stills.refine.refine(lattice, spots, detector, beam) for lattice in found]
    refused = [lattice.reason for lattice in refined if not lattice.accepted]
    accepted = tuple(lattice for lattice in refined if lattice.accepted)
    if accepted:
        separated = stills.refine.separate(accepted, spots, detector, beam)
        accepted = tuple(lattice for lattice in separated if lattice.accepted)
        refused += [lattice.reason for lattice in separated if not lattice.accepted]
    return accepted, refused[0] if refused else ""


class UnitBuilder:
    """Collects the frames of a unit into its tables; row numbers become those of the unit."""

    def __init__(self) -> None:
        self._frames: list[dict[str, Any]] = []
        self._spots: list[SpotTable] = []
        self._lattices: list[dict[str, Any]] = []
        self._indexed: list[IndexedTable] = []
        self._reflections: list[ReflectionTable] = []
        self._control: list[Control] = []
        self._n_spots = 0

    def fail(self, ref: FrameRef, reason: str) -> None:
        """Add a frame that could not be processed."""
        self.add(ref, StillResult(FrameStatus.FAILED, reason, SpotTable(0)), 0.0)

    def add(self, ref: FrameRef, result: StillResult, read_time: float) -> None:
        """Add a frame; ``read_time`` is the CPU time of reading in ms."""
        row, spots, integration = len(self._frames), result.spots, result.integration
        first = len(self._lattices)
        for number, lattice in enumerate(result.lattices):
            self._add_lattice(row, lattice, len(spots), integration, number)
        n_reflections = 0
        if integration is not None:
            table = integration.reflections
            n_reflections = len(table)
            self._reflections.append(table.replace(lattice=table["lattice"] + first))
            if (control := integration.control) is not None:
                self._control.append(replace(control, lattice=control.lattice + np.int32(first)))
        self._spots.append(spots.replace(frame=np.full(len(spots), row)))
        self._n_spots += len(spots)
        self._frames.append(
            {
                "source": ref.source,
                "index": ref.index,
                "status": int(result.status),
                "reason": result.reason if result.status != FrameStatus.INTEGRATED else "",
                "wavelength": result.wavelength,
                "n_spots": len(spots),
                "n_lattices": len(result.lattices),
                "n_reflections": n_reflections,
                "background": float(np.median(spots["background"])) if len(spots) else 0.0,
                "common_mode_failed": result.common_mode_failed,
                "times": (read_time, *result.times),
            }
        )

    def _add_lattice(
        self, row: int, lattice: RefinedLattice, n_spots: int, integration: IntegrationResult | None, number: int
    ) -> None:
        crystal: Crystal = lattice.crystal if integration is None else integration.crystals[number]
        table = lattice.indexed
        self._indexed.append(table.replace(lattice=np.full(len(table), len(self._lattices)), spot=table["spot"] + self._n_spots))
        self._lattices.append(
            {
                "frame": row,
                "A": crystal.a_matrix,
                "cell": crystal.cell,
                "space_group": crystal.space_group,
                "n_spots": n_spots,
                "n_indexed": len(table),
                "rmsd": lattice.rmsd,
                "rmsd_psi": lattice.rmsd_psi,
                "n_used": int(np.count_nonzero(table["used"])),
                "rmsd_used": lattice.rmsd_used,
                "domain_size": crystal.domain_size,
                "half_mosaicity": crystal.half_mosaicity,
                "d_min": 0.0 if integration is None else integration.d_min[number],
                "shift": lattice.shift,
                "tilt": lattice.tilt,
                "satellite": lattice.satellite,
                "log10_p": lattice.log10_p,
            }
        )

    def build(self) -> UnitResult:
        """Return the unit's tables."""
        return UnitResult(
            frames=FrameTable(None, **_columns(self._frames)),
            spots=SpotTable.concatenate(self._spots),
            lattices=LatticeTable(None, **_columns(self._lattices)),
            indexed=IndexedTable.concatenate(self._indexed),
            reflections=ReflectionTable.concatenate(self._reflections),
            control=self._all_control(),
        )

    def _all_control(self) -> Control | None:
        parts = self._control
        return Control(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Control))) if parts else None


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
