"""What merging must say about the symmetry it assumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.observations import Observations
from xfelproc.algorithms.merging.partiality import observed_variance
from xfelproc.errors import ConfigError
from xfelproc.geometry.cells import cell_volume

STRONG_ABSENCE = 3.0
"""Mean I/σ of forbidden observations above which the space group is doubted."""


def checked_cell(cell: Sequence[float]) -> tuple[float, float, float, float, float, float]:
    """Return six floats. Raises ConfigError where they are no cell."""
    values = tuple(float(v) for v in cell)
    if len(values) != 6 or not all(np.isfinite(values)) or min(values) <= 0 or not np.isfinite(cell_volume(values)):
        raise ConfigError(f"cell {values} is impossible: merging needs three lengths (Å) and three angles (degrees) that can meet")
    return values


def symmetry_warnings(group: gemmi.SpaceGroup, proposal: bool, ambiguity: Sequence[str]) -> list[str]:
    """Return what the user must know about the symmetry."""
    found = []
    if proposal:
        found.append(
            f"no space group was given: merged in {group.xhm()}, the holohedry of the lattice; this is a proposal, "
            "set merge.space_group when it is known"
        )
    if ambiguity:
        found.append(
            f"indexing ambiguity not resolved: {'; '.join(ambiguity)} "
            f"{'leaves' if len(ambiguity) == 1 else 'leave'} the lattice unchanged but not the intensities of point group "
            f"{group.point_group_hm()}; the merged intensities are an average over the choices"
        )
    return found


def mtz_title(proposal: bool, ambiguity: Sequence[str]) -> str:
    """Return a title of at most 70 characters that says what the user must know of the symmetry."""
    title = "xfelproc merged"
    if proposal:
        title += ", symmetry is a proposal"
    if ambiguity:
        title += ", UNRESOLVED ambiguity " + "; ".join(ambiguity)
    return title if len(title) <= 70 else title[:67] + "..."


@dataclass(frozen=True)
class Absences:
    """Observations that the space group extinguishes: their number, and the sum of I/σ."""

    count: int = 0
    signal: float = 0.0

    def __add__(self, other: Absences) -> Absences:
        return Absences(self.count + other.count, self.signal + other.signal)

    def warnings(self, group: gemmi.SpaceGroup) -> list[str]:
        """Return a word if they are not weak."""
        ratio = self.signal / max(1, self.count)
        if ratio <= STRONG_ABSENCE:
            return []
        return [
            f"{self.count} observations that {group.xhm()} forbids have a mean I/σ of {ratio:.1f}: the space group may be wrong"
        ]


def extinct(hkl: NDArray[np.int32], group: gemmi.SpaceGroup) -> NDArray[np.bool_]:
    """Return which indices (n, 3) the space group extinguishes."""
    return np.asarray(group.operations().systematic_absences(hkl), dtype=bool).reshape(-1)


def without_absences(observations: Observations, group: gemmi.SpaceGroup) -> tuple[Observations, Absences]:
    """Return observations without those the space group extinguishes, and what these were."""
    if not len(observations):
        return observations, Absences()
    absent = extinct(observations.hkl, group)
    if not absent.any():
        return observations, Absences()
    gone = observations.select(absent)
    signal = float(np.sum(gone.intensity / np.sqrt(observed_variance(gone))))
    return observations.select(~absent), Absences(len(gone), signal)
