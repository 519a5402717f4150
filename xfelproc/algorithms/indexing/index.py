"""Indexing of one frame: search, judge, remove, repeat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from xfelproc.algorithms.indexing.cell_search import CellSearch
from xfelproc.algorithms.indexing.judge import Verdict, judge
from xfelproc.algorithms.indexing.target import KnownLattice, check_cell, known_lattice
from xfelproc.geometry.cells import Floats, misorientation
from xfelproc.geometry.lattice_symmetry import Cell, cell_deviation, symmetrized_orientation
from xfelproc.geometry.reduction import cell_of
from xfelproc.kernels.indexing import spots_to_q
from xfelproc.models.experiment import Beam, Crystal, Detector, as_matrix
from xfelproc.models.frames import CellTarget, IndexedLattice, IndexingResult
from xfelproc.models.parameters import Parameters
from xfelproc.models.tables import SpotTable


@dataclass(frozen=True, eq=False)
class Solution:
    """A primitive basis (rows, Å) with the verdict on it, its conventional basis and space group."""

    basis: Floats
    conventional: Floats
    space_group: str
    verdict: Verdict
    complaint: str = ""

    @property
    def cell(self) -> Cell:
        """Conventional cell as fitted, without constraints."""
        return cell_of(self.conventional)


class Index(Parameters):
    """Indexing: what is known of the crystal, how to search, and when to believe the result."""

    cell: Annotated[
        Cell | None, Field(description="a, b, c (Å), α, β, γ (degrees) of the conventional cell; none: found from the data")
    ] = None
    space_group: Annotated[str | None, Field(description="Hermann-Mauguin symbol or number; none: proposed from the lattice")] = (
        None
    )
    max_lattices: Annotated[int, Field(ge=1, le=20, description="Lattices looked for on a frame")] = 1
    method: CellSearch = CellSearch()
    min_spots: Annotated[int, Field(ge=6, le=1000, description="Fewest spots a lattice must explain, and a frame must have")] = 8
    tolerance: Annotated[
        float,
        Field(
            gt=1e-5,
            lt=0.05,
            description="Largest distance of a spot from its lattice point, 1/Å; never more than 0.3 of a row's spacing",
        ),
    ] = 0.002
    log10_chance: Annotated[
        float,
        Field(
            lt=0, ge=-100, description="Accept a lattice if random spots would show one as good with less than this chance (log10)"
        ),
    ] = -3.0
    length_tolerance: Annotated[
        float, Field(gt=0, le=0.2, description="Largest relative difference of cell lengths from the target")
    ] = 0.05
    angle_tolerance: Annotated[
        float, Field(gt=0, le=10, description="Largest difference of cell angles from the target, degrees")
    ] = 1.5
    min_misorientation: Annotated[
        float, Field(ge=0, le=10, description="Lattices nearer to each other than this are one, degrees")
    ] = 0.7

    def target(self) -> CellTarget:
        """Return what the user says about the lattice.

        Raises
        ------
        ConfigError
            If the cell is impossible or contradicts the space group.
        """
        if self.cell is not None:
            check_cell(self.cell, self.space_group)
        return CellTarget(self.cell, self.space_group)

    def index(self, spots: SpotTable, detector: Detector, beam: Beam, target: CellTarget) -> IndexingResult:
        """Index the spots of one frame.

        Returns
        -------
        IndexingResult
            Lattices in the order found; the rows in them are rows of ``spots``.

        Raises
        ------
        ConfigError
            If the target's cell is impossible or contradicts its space group.
        """
        if len(spots) < self.min_spots:
            return IndexingResult((), f"too few spots: {len(spots)}, indexing needs {self.min_spots}")
        q, weight, rows = prepare_spots(spots, detector, beam)
        found: list[Solution] = []
        lattices: list[IndexedLattice] = []
        reason = ""
        while len(found) < self.max_lattices:
            solution, reason = self._find(q, weight, target, found)
            if solution is None:
                break
            found.append(solution)
            inliers = solution.verdict.inliers
            lattices.append(_indexed(solution, rows))
            q, weight, rows = q[~inliers], weight[~inliers], rows[~inliers]
            if len(rows) < self.min_spots:
                reason = f"no further lattice: {len(rows)} spots are left"
                break
        return IndexingResult(tuple(lattices), reason)

    def _find(self, q: Floats, weight: Floats, target: CellTarget, found: list[Solution]) -> tuple[Solution | None, str]:
        """Return the best acceptable lattice, or None and the reason."""
        lattice = known_lattice(target)
        tolerance = self.tolerance
        best: Solution | None = None
        for attempt in self.method.attempts():
            for basis in self.method.search(q, weight, lattice, attempt, tolerance):
                solution = self._examine(self.method.polish(basis, q, weight, lattice, tolerance), q, lattice, found)
                if best is None or _rank(solution) < _rank(best):
                    best = solution
            if best is not None and not best.complaint:
                return best, ""
            if attempt.n_spots >= len(q) and attempt.low_resolution:
                continue
        return None, best.complaint if best is not None else "no periodicity found"

    def _examine(self, basis: Floats, q: Floats, lattice: KnownLattice, found: list[Solution]) -> Solution:
        """Judge a candidate of known cell."""
        ranges = (2.0 * self.length_tolerance, 2.0 * float(np.radians(self.angle_tolerance)))
        verdict = judge(basis, q, self.tolerance, ranges)
        conventional = lattice.to_conventional @ basis
        cell = cell_of(conventional)
        length, angle = cell_deviation(cell, lattice.cell)
        complaint = ""
        if verdict.count < self.min_spots or verdict.log10_p > self.log10_chance:
            complaint = (
                f"no lattice of the target cell: the best explains {verdict.count} of {len(q)} spots "
                f"(chance 1e{verdict.log10_p:.0f}, 1e{self.log10_chance:.0f} is asked); "
                "check cell, beam centre, distance and wavelength if most frames fail so"
            )
        elif length > self.length_tolerance or angle > self.angle_tolerance:
            complaint = (
                f"a lattice explains {verdict.count} of {len(q)} spots, but its cell {cell_text(cell)} "
                f"is not the target {cell_text(lattice.cell)}"
            )
        else:
            a_matrix = np.linalg.inv(basis)
            for other in found:
                apart = misorientation(a_matrix, np.linalg.inv(other.basis), lattice.rotations.astype(np.int64))
                if apart < self.min_misorientation:
                    complaint = f"no further lattice: the next best is the same to {apart:.2f} degrees"
        return Solution(basis, conventional, lattice.space_group, verdict, complaint)


def _rank(solution: Solution) -> tuple[bool, float]:
    return (bool(solution.complaint), solution.verdict.log10_p)


def _indexed(solution: Solution, rows: NDArray[np.int64]) -> IndexedLattice:
    """Return the solution in the setting of its space group, the cell constrained."""
    inliers = solution.verdict.inliers
    to_conventional = np.rint(solution.conventional @ np.linalg.inv(solution.basis)).astype(np.int32)
    hkl = solution.verdict.hkl[inliers] @ to_conventional.T
    a_matrix = symmetrized_orientation(np.linalg.inv(solution.conventional), solution.space_group)
    order = np.argsort(rows[inliers])
    crystal = Crystal(as_matrix(a_matrix), solution.space_group)
    return IndexedLattice(crystal, rows[inliers][order], hkl[order].astype(np.int32), solution.verdict.log10_p)


def prepare_spots(spots: SpotTable, detector: Detector, beam: Beam) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Return q (n, 3) in 1/Å, weights (n,) of at most 1 and rows of the table, strongest spot first.

    The weight grows as the logarithm of the signal to noise: strong spots are surer, but an ice spot must not decide.
    """
    snr = spots["snr"].astype(np.float64)
    if not np.any(snr > 0):
        snr = np.maximum(spots["intensity"].astype(np.float64), 0.0)
        scale = float(np.median(snr))
        snr = 5.0 * snr / scale if scale > 0 else np.ones(len(snr))
    snr = np.nan_to_num(np.maximum(snr, 0.0))
    rows = np.argsort(-snr, kind="stable")
    q = spots_to_q(
        spots["panel"][rows],
        spots["fast"][rows],
        spots["slow"][rows],
        detector.d_matrices,
        detector.pixel_sizes,
        detector.sensors,
        beam.s0,
    )
    weight = np.log1p(np.clip(snr[rows], 1.0, 50.0))
    return q, weight / weight[0], rows


def cell_text(cell: Cell) -> str:
    """Return a cell as people write it."""
    return " ".join(f"{v:.1f}" for v in cell)
