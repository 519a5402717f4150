"""What the accuracy figures are made with: the chain of one frame, and the judgement of lattices against the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.calibration import Calibrate
from xfelproc.algorithms.indexing import Index
from xfelproc.algorithms.integration import Integrate
from xfelproc.algorithms.refinement import Refine
from xfelproc.algorithms.spotfinding import FindSpots
from xfelproc.geometry.cells import misorientation
from xfelproc.models.conventions import MaskBit
from xfelproc.models.experiment import Beam, Crystal, Detector
from xfelproc.models.frames import CellTarget, Frame, FrameRef, IntegrationResult, RefinedLattice
from xfelproc.models.tables import SpotTable
from xfelproc.simulation import Simulator

MAX_MISORIENTATION = 0.5
MAX_CELL_ERROR = 0.02


@dataclass(frozen=True)
class Row:
    """A figure: what must hold, and what was measured. ``holds`` is None where nothing is asked."""

    figure: str
    what: str
    required: str
    measured: str
    holds: bool | None = None


@dataclass
class Report:
    """Rows of a set of figures, and remarks on what failed."""

    title: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, figure: str, what: str, required: str, measured: str, holds: bool | None = None) -> None:
        self.rows.append(Row(figure, what, required, measured, holds))

    def markdown(self) -> str:
        lines = [f"## {self.title}", "", "| figure | what | required | measured | holds |", "|---|---|---|---|---|"]
        word = {True: "yes", False: "**no**", None: ""}
        lines += [f"| {r.figure} | {r.what} | {r.required} | {r.measured} | {word[r.holds]} |" for r in self.rows]
        if self.notes:
            lines += ["", *[f"* {note}" for note in self.notes]]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Outcome:
    """One frame's way through the chain. ``lattices`` are those that refinement accepted."""

    spots: SpotTable
    hit: bool
    reason: str
    n_indexed: int
    lattices: tuple[RefinedLattice, ...]
    integration: IntegrationResult | None = None


@dataclass(frozen=True)
class Chain:
    """The sections of a job that one frame goes through."""

    target: CellTarget = field(default_factory=CellTarget)
    spots: FindSpots = field(default_factory=FindSpots)
    index: Index = field(default_factory=Index)
    refine: Refine = field(default_factory=Refine)
    calibrate: Calibrate = field(default_factory=Calibrate)
    integrate: Integrate | None = None

    def frame(self, frame: Frame) -> Outcome:
        """Process a raw frame."""
        constants = self.calibrate.constants(frame.detector, frame.mask)
        calibrated = self.calibrate.apply(frame, constants)
        found = self.spots.find(calibrated)
        hit, reason = self.spots.judge(found)
        if not hit:
            return Outcome(found, False, reason, 0, ())
        outcome = self.index_spots(found, frame.detector, frame.beam)
        if self.integrate is None or not outcome.lattices:
            return outcome
        result = self.integrate.integrate(calibrated, outcome.lattices, found)
        return Outcome(found, True, outcome.reason, outcome.n_indexed, outcome.lattices, result)

    def index_spots(self, found: SpotTable, detector: Detector, beam: Beam) -> Outcome:
        """Index and refine a list of spots."""
        result = self.index.index(found, detector, beam, self.target)
        refined = [self.refine.refine(lattice, found, detector, beam) for lattice in result.lattices]
        reasons = [result.reason, *[r.reason for r in refined if not r.accepted]]
        apart = self.refine.separate([r for r in refined if r.accepted], found, detector, beam)
        accepted = tuple(r for r in apart if r.accepted)
        return Outcome(found, True, "; ".join(r for r in reasons if r), len(result.lattices), accepted)


def simulated_frame(simulator: Simulator, index: int) -> tuple[Frame, list[NDArray[np.float64]]]:
    """Return a simulated frame and the matrices A of its crystals; geometry and wavelength are as a file would record them."""
    counts, shot = simulator.frame(index)
    settings = simulator.settings
    detector = simulator.layout.detector
    mask = np.where(simulator.dead, np.uint8(MaskBit.BAD), np.uint8(0))
    beam = Beam(shot.wavelength, bandwidth=settings.beam.bandwidth, polarization_fraction=settings.beam.polarization)
    frame = Frame(FrameRef(0, index), counts, mask, detector.trusted_ranges, detector, beam)
    return frame, [crystal.A for crystal in shot.crystals]


_HALF, _THIRD = 0.5, 1.0 / 3.0
_PRIMITIVE = {
    "P": np.eye(3),
    "A": np.array([[1, 0, 0], [0, _HALF, _HALF], [0, -_HALF, _HALF]]),
    "B": np.array([[_HALF, 0, _HALF], [0, 1, 0], [-_HALF, 0, _HALF]]),
    "C": np.array([[_HALF, _HALF, 0], [-_HALF, _HALF, 0], [0, 0, 1]]),
    "I": np.array([[-_HALF, _HALF, _HALF], [_HALF, -_HALF, _HALF], [_HALF, _HALF, -_HALF]]),
    "F": np.array([[0, _HALF, _HALF], [_HALF, 0, _HALF], [_HALF, _HALF, 0]]),
    "R": np.array([[2 * _THIRD, _THIRD, _THIRD], [-_THIRD, _THIRD, _THIRD], [-_THIRD, -2 * _THIRD, _THIRD]]),
}
"""Rows: a primitive basis in terms of the conventional one (International Tables A, 5.1)."""


def primitive(matrix: NDArray[np.float64], space_group: str) -> NDArray[np.float64]:
    """Return rows (Å) of a primitive basis of a lattice whose ``matrix`` has the columns a*, b*, c* of the conventional one."""
    group = gemmi.find_spacegroup_by_name(space_group)
    if group is None:
        raise ValueError(f"unknown space group {space_group!r}")
    centring = "P" if group.ext == "R" else group.centring_type()
    return np.asarray(_PRIMITIVE[centring] @ np.linalg.inv(matrix), dtype=np.float64)


@dataclass(frozen=True)
class Agreement:
    """How near a found lattice is to a true one, whatever the choice of axes."""

    right: bool
    misorientation: float
    cell_error: float


def compare(found: Crystal, truth: NDArray[np.float64], space_group: str) -> Agreement:
    """Compare two lattices in the basis of the true one: the integer matrix between their primitive bases must be unimodular."""
    ours, theirs = primitive(found.a_matrix, found.space_group), primitive(truth, space_group)
    relation = np.rint(theirs @ np.linalg.inv(ours))
    if round(abs(float(np.linalg.det(relation)))) != 1:
        return Agreement(False, 180.0, 1.0)
    same = relation @ ours
    lengths = np.linalg.norm(same, axis=1) / np.linalg.norm(theirs, axis=1)
    error = float(np.abs(lengths - 1.0).max())
    angle = misorientation(np.linalg.inv(same), np.linalg.inv(theirs))
    return Agreement(angle < MAX_MISORIENTATION and error < MAX_CELL_ERROR, angle, error)


@dataclass
class Tally:
    """Frames and lattices counted."""

    frames: int = 0
    true: int = 0
    right: int = 0
    wrong: int = 0
    frames_right: int = 0
    spots: list[int] = field(default_factory=list)
    angles: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def count(self, label: str, outcome: Outcome, truths: Sequence[NDArray[np.float64]], space_group: str) -> None:
        """Judge a frame: each true lattice is found at most once; what is left over is wrong."""
        self.frames += 1
        self.true += len(truths)
        self.spots.append(len(outcome.spots))
        open_truths = list(range(len(truths)))
        wrong = 0
        for lattice in outcome.lattices:
            results = [(compare(lattice.crystal, truths[t], space_group), t) for t in open_truths]
            hits = [(r.misorientation, t) for r, t in results if r.right]
            if hits:
                angle, taken = min(hits)
                open_truths.remove(taken)
                self.angles.append(angle)
                self.right += 1
            else:
                wrong += 1
                best = min((r.misorientation for r, _ in results), default=float("nan"))
                cell = " ".join(f"{v:.2f}" for v in lattice.crystal.cell)
                self.failures.append(f"{label}: wrong lattice {cell}, nearest truth {best:.2f}°, {len(outcome.spots)} spots")
        self.wrong += wrong
        self.frames_right += not open_truths and not wrong
        if open_truths and not wrong:
            self.failures.append(
                f"{label}: {len(open_truths)} missed of {len(truths)}, {len(outcome.spots)} spots: {outcome.reason}"
            )

    @property
    def share(self) -> float:
        """Share of the true lattices that were found."""
        return self.right / self.true if self.true else 1.0

    @property
    def wrong_share(self) -> float:
        """Share of the reported lattices that are wrong."""
        reported = self.right + self.wrong
        return self.wrong / reported if reported else 0.0

    def words(self) -> str:
        spots = f"{min(self.spots)}-{max(self.spots)} spots" if self.spots else "no frames"
        angle = f", median {np.median(self.angles):.4f}°, worst {max(self.angles):.3f}°" if self.angles else ""
        return f"{self.right} of {self.true} right ({100 * self.share:.1f} %), {self.wrong} wrong; {spots}{angle}"
