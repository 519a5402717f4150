"""A lattice that was found, and what may be wrong with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xfelproc.algorithms.indexing.judge import Verdict
from xfelproc.algorithms.indexing.target import KnownLattice
from xfelproc.algorithms.indexing.vectors import SpotVectors
from xfelproc.geometry.cells import Floats
from xfelproc.geometry.lattice_characters import LatticeFits, bravais_of, nearly_reduced
from xfelproc.geometry.lattice_symmetry import Cell, cell_deviation, symmetrized_orientation
from xfelproc.geometry.reduction import cell_of, reduced_basis
from xfelproc.models.experiment import Crystal, as_matrix
from xfelproc.models.frames import IndexedLattice


@dataclass(frozen=True, eq=False)
class Solution:
    """A primitive basis (rows, Å), the verdict of the spots on it, its conventional basis and space group.

    ``complaint`` says why it is not accepted; empty if it is.
    """

    spots: SpotVectors
    basis: Floats
    conventional: Floats
    space_group: str
    verdict: Verdict
    complaint: str = ""

    @property
    def cell(self) -> Cell:
        """Conventional cell as fitted, without constraints."""
        return cell_of(self.conventional)

    @property
    def accepted(self) -> bool:
        """Whether nothing is wrong with it."""
        return not self.complaint

    def better_than(self, other: Solution | None) -> bool:
        """Whether this one is to be preferred."""
        if other is None or self.accepted != other.accepted:
            return other is None or self.accepted
        return self.verdict.log10_p < other.verdict.log10_p

    def indexed(self) -> IndexedLattice:
        """Return the lattice in the setting of its space group, the cell constrained."""
        inliers = self.verdict.inliers
        to_conventional = np.rint(self.conventional @ np.linalg.inv(self.basis)).astype(np.int32)
        hkl = self.verdict.hkl[inliers] @ to_conventional.T
        a_matrix = symmetrized_orientation(np.linalg.inv(self.conventional), self.space_group)
        rows = self.spots.rows[inliers]
        order = np.argsort(rows)
        crystal = Crystal(as_matrix(a_matrix), self.space_group)
        return IndexedLattice(crystal, rows[order], hkl[order].astype(np.int32), self.verdict.log10_p, self.spots.translation)


def match_target(basis: Floats, lattice: KnownLattice, length_tolerance: float) -> Floats | None:
    """Return the basis of the same lattice that is nearest to the target's reduced basis; None if none is near."""
    reduced, _ = reduced_basis(basis)
    g = reduced @ reduced.T
    wanted = np.array(cell_of(lattice.reduced))
    best, best_off = None, np.inf
    for transform in nearly_reduced(g, 2.0 * length_tolerance):
        cell = np.array(cell_of(transform @ reduced))
        off = float(np.max(np.abs(cell[:3] / wanted[:3] - 1.0)) + np.max(np.abs(cell[3:] - wanted[3:])) / 30.0)
        if off < best_off:
            best, best_off = transform @ reduced, off
    return None if best is None or best_off > 4.0 * length_tolerance else np.ascontiguousarray(best)


def conventional_basis(basis: Floats, group: str | None, max_penalty: float) -> tuple[Floats, str, str]:
    """Return the conventional basis of a primitive one, its space group, and a complaint.

    The lattice must fit the Bravais type of ``group`` within ``max_penalty`` (percent or degrees, times 100); without a group the
    highest symmetry within it is proposed.
    """
    fits = LatticeFits(basis)
    if group is None:
        proposal = fits.highest(max_penalty)
        return proposal.transform @ basis, proposal.space_group, ""
    wanted = bravais_of(group)
    fit = fits.bravais(wanted, 998.0)
    if fit is None:
        return basis, "P 1", f"a lattice was found, {cell_text(cell_of(basis))}, but it is far from {wanted}, which {group} demands"
    complaint = ""
    if fit.penalty > max_penalty:
        complaint = (
            f"a lattice was found, but imposing {group} would distort its cell {cell_text(cell_of(fit.transform @ basis))} "
            f"by {fit.penalty / 100:.1f} % or degrees"
        )
    return fit.transform @ basis, group, complaint


def cell_complaint(cell: Cell, target: Cell, length_tolerance: float, angle_tolerance: float) -> str:
    """Return what is wrong with a cell against the target's, or nothing."""
    length, angle = cell_deviation(cell, target)
    if length <= length_tolerance and angle <= angle_tolerance:
        return ""
    return (
        f"its cell {cell_text(cell)} differs from the target {cell_text(target)} by {100 * length:.1f} % and {angle:.1f} degrees "
        f"(allowed {100 * length_tolerance:.1f} % and {angle_tolerance:.1f})"
    )


def cell_text(cell: Cell) -> str:
    """Return a cell as people write it."""
    return " ".join(f"{v:.1f}" for v in cell)
