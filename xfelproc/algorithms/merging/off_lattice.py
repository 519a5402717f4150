"""Negative control from pixels: what lies between the reflections, scaled and merged as the reflections beside it are.

Each is divided by scale, partiality and polarisation of its reflection, has its weight, and is merged with those beside
equivalent reflections, in half-sets of frames. There is nothing to be found: a correlation of the halves is one that background,
neighbours or the processing make.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.observed import edges_of
from xfelproc.algorithms.merging.reduction import inverse_d2, pack, to_asu
from xfelproc.algorithms.merging.statistics import correlation
from xfelproc.kernels.observed import match_observations
from xfelproc.models.tables import ShellTable

Floats = NDArray[np.float64]

FALSE_CC = 0.1
"""Correlation, weighted over the shells, above which it is told of, if it is significant too."""


@dataclass(frozen=True)
class OffLattice:
    """Intensities between reflections, sorted by these: index in the asymmetric unit (n, 3), ISYM, batch, intensity, half-set.

    ``found`` (n, 2) are weight and factor of the observation beside each, 0 where it was not merged.
    """

    hkl: NDArray[np.int32]
    isym: NDArray[np.int32]
    batch: NDArray[np.int64]
    intensity: Floats
    half: NDArray[np.uint8]
    found: Floats

    @classmethod
    def of(
        cls,
        hkl: NDArray[np.int32],
        lattice: NDArray[np.int64],
        intensity: NDArray[np.float32],
        half: NDArray[np.uint8],
        group: gemmi.SpaceGroup,
    ) -> OffLattice:
        """Sort intensities beside reflections of indices (n, 3), in the setting of the merged data, of lattices of the run."""
        reduced, isym = to_asu(hkl, group)
        order = np.argsort(pack(reduced), kind="stable")
        batch = lattice.astype(np.int64)[order] + 1
        found = np.zeros((len(hkl), 2))
        return cls(reduced[order], isym[order], batch, intensity[order].astype(np.float64), half[order], found)

    def watched(self, rows: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        """Yield rows of an unmerged MTZ of ours as they are, all of them sorted by index, and find the observations in them."""
        first = 0
        for some in rows:
            if len(self.hkl):
                hkl, isym, batch, sigma = (np.ascontiguousarray(some[:, i]) for i in (slice(0, 3), 3, 4, 6))
                factor = some[:, 7] * some[:, 8] * some[:, 11]
                first = match_observations(hkl, isym, batch, sigma, factor, self.hkl, self.isym, self.batch, first, self.found)
            yield some

    def halves(self) -> tuple[NDArray[np.int32], Floats]:
        """Return indices (g, 3) of reflections and the means (g, 2) of what is beside them, NaN where a half has none."""
        known = self.found[:, 0] > 0
        keys, first, number = np.unique(pack(self.hkl[known]), return_index=True, return_inverse=True)
        weight, scaled = self.found[known, 0], self.intensity[known] / self.found[known, 1]
        means = np.empty((len(keys), 2))
        for half in (0, 1):
            own = np.where(self.half[known] == half, weight, 0.0)
            total = np.bincount(number, own, minlength=len(keys))
            with np.errstate(invalid="ignore", divide="ignore"):
                means[:, half] = np.bincount(number, own * scaled, minlength=len(keys)) / total
        return self.hkl[known][first], means

    def added_to(self, shells: ShellTable, overall: ShellTable, cell: Sequence[float]) -> tuple[ShellTable, ShellTable]:
        """Return tables of shells with the correlation of the halves; over all it is the shells' mean, by number."""
        hkl, means = self.halves()
        both = np.all(np.isfinite(means), axis=1)
        shell = np.searchsorted(edges_of(shells), np.sqrt(inverse_d2(hkl[both], cell)), side="right") - 1
        shell = np.clip(shell, 0, len(shells) - 1)
        counts = np.bincount(shell, minlength=len(shells))
        cc = np.array([correlation(*means[both][shell == n].T) for n in range(len(shells))])
        good = np.isfinite(cc)
        mean = float(np.average(cc[good], weights=counts[good])) if good.any() else float("nan")
        return (
            shells.replace(cc_off_lattice=cc, n_off_lattice=counts),
            overall.replace(cc_off_lattice=[mean], n_off_lattice=[int(counts.sum())]),
        )


def off_lattice_warnings(overall: ShellTable) -> list[str]:
    """Return a word if what is between the reflections correlates between the halves."""
    cc, n = float(overall["cc_off_lattice"][0]), int(overall["n_off_lattice"][0])
    if not n or not cc >= max(FALSE_CC, 3.0 / np.sqrt(n)):
        return []
    return [
        f"negative control: intensities between the reflections correlate by {cc:.2f} between the halves ({n} pairs); a CC1/2 of"
        " this size is no signal"
    ]
