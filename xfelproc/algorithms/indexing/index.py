"""Indexing of one frame: search, judge, remove, repeat."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field

from xfelproc.algorithms.indexing.cell_search import DISPLACED, FIRST, FURTHER, Attempt, CellSearch
from xfelproc.algorithms.indexing.distance import nearest_cell, results_at_distances
from xfelproc.algorithms.indexing.fft1d import Fft1d
from xfelproc.algorithms.indexing.judge import judge, ranges_about
from xfelproc.algorithms.indexing.solution import Solution, cell_complaint, conventional_basis, match_target
from xfelproc.algorithms.indexing.target import KnownLattice, check_cell, known_lattice
from xfelproc.algorithms.indexing.vectors import SpotVectors, spot_vectors
from xfelproc.geometry.cells import Floats, lattice_rotations, misorientation
from xfelproc.geometry.lattice_symmetry import Cell, cell_deviation, symmetrized_cell
from xfelproc.geometry.reduction import cell_of
from xfelproc.kernels.lattice_search import fit_lattice_and_shift
from xfelproc.models.experiment import Beam, Detector
from xfelproc.models.frames import CellTarget, IndexedLattice, IndexingResult
from xfelproc.models.parameters import Algorithm, Parameters, method_by_name
from xfelproc.models.tables import SpotTable


class Automatic(Algorithm):
    """The cell search where the cell is known, the Fourier transforms where it is not."""

    method: Literal["auto"] = "auto"
    with_cell: Annotated[CellSearch, Field(description="search where the cell is known")] = CellSearch()
    without_cell: Annotated[Fft1d, Field(description="search where it is not")] = Fft1d()


Indexer = Annotated[
    Annotated[Automatic | CellSearch | Fft1d, Field(discriminator="method")],
    BeforeValidator(method_by_name),
]

_MANY = 20
"""So many spots that are left over are worth a second try for another lattice."""
_BROADER = 3.0
"""Factor on the misorientation that must be between a broad lattice and a further one."""
_SHIFT_RINGS = ((0.2, 6), (0.36, 9))
"""Translations tried where the beam centre may be off: radius in units of the mean spacing of spots, points on the ring."""


class Index(Parameters):
    """Indexing: what is known of the crystal, how to search, and when to believe the result."""

    cell: Annotated[
        Cell | None,
        Field(description="a, b, c (Å), α, β, γ (degrees) of the conventional cell; None: found from the data"),
    ] = None
    space_group: Annotated[str | None, Field(description="Hermann-Mauguin symbol or number; None: proposed from the lattice")] = (
        None
    )
    max_lattices: Annotated[int, Field(ge=1, le=20, description="lattices looked for on a frame")] = 3
    method: Annotated[Indexer, Field(description="how lattices are searched for")] = Automatic()
    min_spots: Annotated[int, Field(ge=6, le=1000, description="fewest spots a lattice must explain, and a frame must have")] = 8
    tolerance: Annotated[
        float,
        Field(
            gt=1e-5,
            lt=0.05,
            description="largest distance of a spot from its lattice point, 1/Å; at most 0.3 of the shortest reciprocal axis",
        ),
    ] = 0.002
    log10_chance: Annotated[
        float,
        Field(
            lt=0, ge=-100, description="a lattice is accepted if random spots show one as good with less than this chance, log10"
        ),
    ] = -3.0
    length_tolerance: Annotated[
        float, Field(gt=0, le=0.2, description="largest relative difference of cell lengths from the target")
    ] = 0.05
    angle_tolerance: Annotated[
        float, Field(gt=0, le=10, description="largest difference of cell angles from the target, degrees")
    ] = 1.5
    max_penalty: Annotated[
        float,
        Field(gt=0, le=10, description="cell unknown: largest distortion by which symmetry may be imposed, percent or degrees"),
    ] = 1.5
    max_shift: Annotated[
        float,
        Field(ge=0, le=0.5, description="largest error of the beam centre searched for, in mean spacings of the spots; 0: none"),
    ] = 0.4
    max_distance_error: Annotated[
        float,
        Field(
            ge=0,
            le=0.3,
            description="cell known: relative error of the detector's distance searched for where a frame does not index; 0: none",
        ),
    ] = 0.0
    min_misorientation: Annotated[
        float, Field(ge=0, le=10, description="lattices nearer to each other are one (three times that: broad ones), degrees")
    ] = 0.7

    def target(self) -> CellTarget:
        """Return what the user says about the lattice.

        Raises
        ------
        ConfigError
            If the cell is impossible or contradicts the space group.
        """
        check_cell(self.cell, self.space_group)
        return CellTarget(self.cell, self.space_group)

    def quick(self) -> Self:
        """Return the same without what costs most on frames that do not index: one lattice, one try, no search for the centre."""
        method = self.method
        if isinstance(method, CellSearch):
            method = method.model_copy(update={"retries": 0})
        elif isinstance(method, Automatic):
            method = method.model_copy(update={"with_cell": method.with_cell.model_copy(update={"retries": 0})})
        alone = {"method": method, "max_lattices": 1, "max_shift": 0.0, "max_distance_error": 0.0}
        return self.model_copy(update=alone)

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
        result = self._index_at(spots, detector, beam, target)
        if result.lattices or target.cell is None or self.max_distance_error == 0:
            return result
        return self._search_distance(spots, detector, beam, target) or result

    def _search_distance(self, spots: SpotTable, detector: Detector, beam: Beam, target: CellTarget) -> IndexingResult | None:
        """Return what is found with the detector nearer or further by up to ``max_distance_error``; None if that is nothing."""
        found = results_at_distances(
            lambda moved: self._index_at(spots, moved, beam, target), detector, beam, self.max_distance_error
        )
        return nearest_cell(found, target)

    def _index_at(self, spots: SpotTable, detector: Detector, beam: Beam, target: CellTarget) -> IndexingResult:
        """Return the lattices that the spots show with the detector where it is."""
        left = spot_vectors(spots, detector, beam)
        found: list[Solution] = []
        lattices: list[IndexedLattice] = []
        reason = ""
        while len(found) < self.max_lattices:
            if len(left) < self.min_spots:
                reason = f"no further lattice: {len(left)} spots are left"
                break
            solution = self._find(left, target, found)
            if solution is None or not solution.accepted:
                reason = "no periodicity found: too few spots of one crystal?" if solution is None else solution.complaint
                break
            found.append(solution)
            lattices.append(solution.indexed())
            left = solution.spots.without(solution.verdict.close)
        return IndexingResult(tuple(lattices), reason)

    def _find(self, spots: SpotVectors, target: CellTarget, found: list[Solution]) -> Solution | None:
        """Return the best lattice, acceptable or not. Further lattices of a frame are taken to be of the first one's kind."""
        if target.cell is None and found and not isinstance(self.method, Fft1d):
            target = CellTarget(symmetrized_cell(found[0].cell, found[0].space_group), found[0].space_group)
        if target.cell is None:
            return self._find_without_cell(spots, target, found)
        if isinstance(self.method, Fft1d):
            return self._find_by_transforms(spots, self.method, known_lattice(target), found)
        search = self.method if isinstance(self.method, CellSearch) else self.method.with_cell
        lattice = known_lattice(target)
        best: Solution | None = None
        for attempt in (FIRST, FURTHER)[: 1 + (len(spots) >= _MANY)] if found else search.attempts():
            best = self._try(search, spots, lattice, attempt, found, best)
            if best is not None and best.accepted:
                break
        if self.max_shift > 0 and not found:
            if best is not None and best.accepted and best.verdict.loose:
                shifted = self._fit_shift(spots, best.basis, lattice)
                best = shifted if _clearly_better(shifted, best) else best
            if best is None or _displaced(best):
                best = self._find_shifted(search, spots, lattice, best)
        return best

    def _try(
        self,
        search: CellSearch,
        spots: SpotVectors,
        lattice: KnownLattice,
        attempt: Attempt,
        found: list[Solution],
        best: Solution | None,
    ) -> Solution | None:
        """Return the better of ``best`` and what an attempt finds."""
        for basis in search.search(spots.q, spots.weight, lattice, attempt, self.tolerance):
            for stiff in (False, True):
                fitted = search.polish(basis, spots.q, spots.weight, lattice, self.tolerance, stiff)
                solution = self._examine(spots, fitted, lattice, found)
                if solution.better_than(best):
                    best = solution
                if not _doubtful(solution):
                    return best
        return best

    def _find_shifted(
        self, search: CellSearch, spots: SpotVectors, lattice: KnownLattice, best: Solution | None
    ) -> Solution | None:
        """Return the better of ``best`` and what is found with the detector translated."""
        spacing = float(np.mean(np.linalg.norm(np.linalg.inv(lattice.reduced), axis=0)))
        slope = float(np.median(np.linalg.norm(spots.slope(), axis=1)))
        for shift in _ring_points(self.max_shift, spacing / slope):
            moved = spots.shifted(shift)
            for basis in search.search(moved.q, moved.weight, lattice, DISPLACED, self.tolerance)[:1]:
                solution = self._fit_shift(moved, basis, lattice)
                best = solution if _clearly_better(solution, best) else best
            if best is not None and best.accepted and not _doubtful(best):
                break
        return best

    def _fit_shift(self, spots: SpotVectors, basis: Floats, lattice: KnownLattice) -> Solution:
        """Fit lattice and translation together and judge the lattice."""
        fitted, shift = basis.copy(), np.zeros(2)
        last = min(self.tolerance, 0.3 / float(np.max(np.linalg.norm(basis, axis=1))))
        fit_lattice_and_shift(
            fitted, spots.q, spots.slope(), spots.weight, np.array([2 * last, 1.5 * last, last, last, last]), shift
        )
        moved = spots.shifted((spots.shift[0] + float(shift[0]), spots.shift[1] + float(shift[1])))
        return self._examine(moved, fitted, lattice, [])

    def _find_without_cell(self, spots: SpotVectors, target: CellTarget, found: list[Solution]) -> Solution | None:
        search = self.method if isinstance(self.method, Fft1d) else getattr(self.method, "without_cell", Fft1d())
        best: Solution | None = None
        for basis in search.search(spots.q, spots.weight, self.tolerance):
            fitted = search.polish(basis, spots.q, spots.weight, self.tolerance)
            solution = self._examine_free(spots, basis if fitted is None else fitted, target, found)
            if solution.better_than(best):
                best = solution
            if not _doubtful(solution):
                break
        return best

    def _find_by_transforms(
        self, spots: SpotVectors, search: Fft1d, lattice: KnownLattice, found: list[Solution]
    ) -> Solution | None:
        """Find lattices without use of the cell, and compare them with it."""
        best: Solution | None = None
        for basis in search.search(spots.q, spots.weight, self.tolerance):
            fitted = search.polish(basis, spots.q, spots.weight, self.tolerance)
            matched = match_target(basis if fitted is None else fitted, lattice, self.length_tolerance)
            solution = self._examine(spots, basis if matched is None else matched, lattice, found)
            if solution.better_than(best):
                best = solution
            if not _doubtful(solution):
                break
        return best

    def _examine(self, spots: SpotVectors, basis: Floats, lattice: KnownLattice, found: list[Solution]) -> Solution:
        """Judge a candidate of known cell."""
        conventional = lattice.to_conventional @ basis
        cell = cell_of(conventional)
        ranges, n_ranges = ranges_about(*cell_deviation(cell, lattice.cell), (self.length_tolerance, self.angle_tolerance))
        verdict = judge(basis, spots.q, spots.beam.s0, self.tolerance, ranges, n_ranges)
        complaint = ""
        if verdict.count < self.min_spots or verdict.log10_p > self.log10_chance:
            complaint = (
                f"no lattice of the target cell: the best explains {verdict.count} of {len(spots)} spots, which is no more than "
                "chance; check cell, beam centre, distance and wavelength if most frames fail so"
            )
        elif wrong := cell_complaint(cell, lattice.cell, self.length_tolerance, self.angle_tolerance):
            complaint = f"a lattice explains {verdict.count} of {len(spots)} spots, but {wrong}"
        else:
            complaint = self._repeats(basis, found, lattice.rotations)
        return Solution(spots, basis, conventional, lattice.space_group, verdict, complaint)

    def _examine_free(self, spots: SpotVectors, basis: Floats, target: CellTarget, found: list[Solution]) -> Solution:
        """Judge a candidate of unknown cell."""
        verdict = judge(basis, spots.q, spots.beam.s0, self.tolerance, (math.log(200.0 / 5.0), 1.0))
        if verdict.count < self.min_spots or verdict.log10_p > self.log10_chance:
            complaint = (
                f"no lattice found: the best explains {verdict.count} of {len(spots)} spots, which is no more than chance; "
                "give the cell, or more spots"
            )
            return Solution(spots, basis, basis, "P 1", verdict, complaint)
        conventional, group, complaint = conventional_basis(basis, target.space_group, 100.0 * self.max_penalty)
        if not complaint and found:
            complaint = self._repeats(basis, found, lattice_rotations(cell_of(basis), 1.0).astype(np.float64))
        return Solution(spots, basis, conventional, group, verdict, complaint)

    def _repeats(self, basis: Floats, found: list[Solution], rotations: Floats) -> str:
        """Return a complaint if the lattice is one of those found already."""
        for other in found:
            apart = misorientation(np.linalg.inv(basis), np.linalg.inv(other.basis), rotations.astype(np.int64))
            if apart < self.min_misorientation * (_BROADER if other.verdict.broad else 1.0):
                return f"no further lattice: the next best is a found one to {apart:.2f} degrees"
        return ""


def _doubtful(solution: Solution) -> bool:
    """Whether a lattice explains so few of the spots that a better one may be found."""
    return not solution.accepted or solution.verdict.count < 0.7 * len(solution.spots)


def _displaced(solution: Solution) -> bool:
    """Whether the beam centre may be wrong: no lattice, or one that leaves many spots and does not fit the others well.

    A lattice that fits sharply gains more than one in log10 of its chance from each spot.
    """
    few = solution.verdict.count < 0.6 * len(solution.spots)
    return not solution.accepted or (few and (solution.verdict.loose or solution.verdict.log10_p > -0.6 * len(solution.spots)))


def _clearly_better(shifted: Solution, plain: Solution | None) -> bool:
    """Whether a translated detector explains the spots so much better that it is to be believed."""
    return plain is None or (shifted.better_than(plain) and shifted.verdict.log10_p < 1.2 * plain.verdict.log10_p)


def _ring_points(max_shift: float, unit: float) -> Iterator[tuple[float, float]]:
    """Yield translations (mm) on rings; ``unit`` is the mean spacing of spots in mm."""
    for radius, count in _SHIFT_RINGS:
        if radius <= max_shift:
            for k in range(count):
                phi = 2.0 * math.pi * k / count
                yield (radius * unit * math.cos(phi), radius * unit * math.sin(phi))
