"""Statistics over scaled observations, as other programs make them of an unmerged file.

R_merge, R_meas (Diederichs & Karplus 1997, Nat. Struct. Biol. 4, 269), R_pim (Weiss & Hilgenfeld 1997, J. Appl. Cryst. 30, 203)
compare each scaled observation I to the mean ⟨I⟩ with weights 1/σ² of its reflection, over Σ⟨I⟩, for reflections observed twice or
more. CC1/2 without half-sets (Assmann, Brehm & Diederichs 2016, J. Appl. Cryst. 49, 1021) is (τ - ε/2) / (τ + ε/2), with τ the
variance of the means and ε/2 the mean variance of a mean of half the observations' own spread, 2/(n - 1) Σw(I - ⟨I⟩)²/Σw.

Observations come by whole reflections, some at a time; what is kept of them is a few sums a shell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.reduction import inverse_d2
from xfelproc.kernels.observed import SUMS, bounds_of_groups, sums_of_groups
from xfelproc.models.conventions import ReflectionFlag
from xfelproc.models.tables import ShellTable, UnmergedTable

Floats = NDArray[np.float64]

ALL, WITHIN = 0, 1
"""Statistics with Friedel mates as one reflection, and with I(+) and I(-) each for itself."""
_COUNTS = ("n_observations", "n_unique", "n_repeated")
_TOTALS = (*_COUNTS, "deviation", "deviation_meas", "deviation_pim", "mean", "square", "spread", "sum")
_COLUMNS = {ALL: ("n_repeated", "r_merge", "r_meas", "r_pim", "cc_half_sigma_tau"), WITHIN: ("r_meas", "r_pim")}


@dataclass(frozen=True)
class ReflectionSums:
    """Sums over the observations of some reflections: indices (g, 3), `kernels.observed` sums (g, 4, SUMS), Σ|I - mean| (g, 3)."""

    hkl: NDArray[np.int32]
    centric: NDArray[np.bool_]
    sums: Floats
    deviations: Floats

    @classmethod
    def of(
        cls,
        hkl: NDArray[np.float32],
        isym: NDArray[np.float32],
        intensity: NDArray[np.float32],
        sigma: NDArray[np.float32],
        group: gemmi.SpaceGroup,
        half: NDArray[np.uint8] | None = None,
    ) -> ReflectionSums:
        """Add up observations (n,) whose indices (n, 3) are in the asymmetric unit and sorted; ``isym`` is even for I(-)."""
        hkl, isym, intensity, sigma = (np.ascontiguousarray(values, dtype=np.float32) for values in (hkl, isym, intensity, sigma))
        bounds = bounds_of_groups(hkl)
        unique = np.ascontiguousarray(hkl[bounds[:-1]], dtype=np.int32)
        centric = np.asarray(group.operations().centric_flag_array(unique), dtype=bool).reshape(-1)
        minus = (isym.astype(np.int64) % 2 == 0) & ~np.repeat(centric, np.diff(bounds))
        column = 2 * minus.astype(np.uint8) + (np.uint8(0) if half is None else half)
        return cls(unique, centric, *sums_of_groups(bounds, column.astype(np.uint8), intensity, sigma))

    def column(self, columns: Sequence[int]) -> Floats:
        """Return the sums (g, SUMS) over some of the columns 2 · minus + half-set."""
        total: Floats = self.sums[:, list(columns)].sum(axis=1)
        return total

    def select(self, rows: NDArray[np.bool_]) -> ReflectionSums:
        """Return some of the reflections."""
        return ReflectionSums(self.hkl[rows], self.centric[rows], self.sums[rows], self.deviations[rows])

    @classmethod
    def concatenate(cls, parts: Sequence[ReflectionSums]) -> ReflectionSums:
        """Return the sums of all parts, which share no reflection."""
        if not parts:
            nothing = np.zeros((0, 3), dtype=np.int32), np.zeros(0, dtype=bool)
            return cls(*nothing, np.zeros((0, 4, SUMS)), np.zeros((0, 3)))
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("hkl", "centric", "sums", "deviations")))


class ObservedStatistics:
    """Statistics over observations by resolution shell; ``edges`` (n + 1,) bound the shells in 1/d (1/Å)."""

    def __init__(self, cell: Sequence[float], edges: Floats) -> None:
        self._cell, self._edges = cell, edges
        self._totals = np.zeros((len(edges) - 1, 2, len(_TOTALS)))

    def add(self, sums: ReflectionSums) -> None:
        """Add reflections that were not yet added."""
        inverse_d = np.sqrt(inverse_d2(sums.hkl, self._cell))
        shell = np.clip(np.searchsorted(self._edges, inverse_d, side="right") - 1, 0, len(self._edges) - 2)
        for kind, columns, deviation in ((ALL, (0, 1, 2, 3), 0), (WITHIN, (0, 1), 1), (WITHIN, (2, 3), 2)):
            terms = _terms(sums.column(columns), sums.deviations[:, deviation])
            for number, values in enumerate(terms):
                self._totals[:, kind, number] += np.bincount(shell, values, minlength=len(self._totals))

    def watched(self, rows: Iterable[NDArray[np.float32]], group: gemmi.SpaceGroup) -> Iterator[NDArray[np.float32]]:
        """Yield rows of an unmerged MTZ of ours (`io.exchange.mtz_pieces.Rows`) as they are, and add them."""
        for some in rows:
            self.add(ReflectionSums.of(some[:, :3], some[:, 3], some[:, 5], some[:, 6], group))
            yield some

    def shells(self, kind: int = ALL) -> dict[str, Floats]:
        """Return the statistics by shell, (n,) each."""
        return _statistics(self._totals[:, kind])

    def overall(self, kind: int = ALL) -> dict[str, Floats]:
        """Return the statistics over all, (1,) each."""
        return _statistics(self._totals[:, kind].sum(axis=0, keepdims=True))

    def added_to(self, shells: ShellTable, overall: ShellTable) -> tuple[ShellTable, ShellTable]:
        """Return the tables of the same shells with these statistics in them."""
        return shells.replace(**_named(self.shells(ALL), self.shells(WITHIN))), overall.replace(
            **_named(self.overall(ALL), self.overall(WITHIN))
        )


def edges_of(shells: ShellTable) -> Floats:
    """Return the edges in 1/d (1/Å) of a table of shells."""
    edges: Floats = 1.0 / np.append(shells["d_max"][:1], shells["d_min"])
    return edges


def sums_of_table(unmerged: UnmergedTable, group: gemmi.SpaceGroup) -> ReflectionSums:
    """Return the sums over the rows of a sorted table that are no outliers, at the precision of the unmerged file."""
    rows = unmerged.select(unmerged["flags"] & int(ReflectionFlag.OUTLIER) == 0)
    hkl, isym, intensity, sigma = (rows[name].astype(np.float32) for name in ("hkl_asu", "isym", "intensity", "sigma"))
    return ReflectionSums.of(hkl, isym, intensity, sigma, group, rows["half"])


def nothing_observed() -> dict[str, Any]:
    """Return the columns of ShellTable where observations were not looked at."""
    found = _statistics(np.zeros((1, len(_TOTALS))))
    return {name: values[0] for name, values in _named(found, found).items()}


def _named(every: dict[str, Floats], within: dict[str, Floats]) -> dict[str, Floats]:
    return {name: every[name] for name in _COLUMNS[ALL]} | {f"{name}_within": within[name] for name in _COLUMNS[WITHIN]}


def _terms(sums: Floats, deviation: Floats) -> list[Floats]:
    """Return what each reflection adds to the totals of its shell, in the order of _TOTALS."""
    n, weight, weighted, squares = sums[:, 0], sums[:, 2], sums[:, 3], sums[:, 4]
    twice = n > 1
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = weighted / weight
        spread = (squares / weight - mean**2) * 2.0 / (n - 1.0)
        r_meas, r_pim = deviation * np.sqrt(n / (n - 1.0)), deviation / np.sqrt(n - 1.0)
    repeated = (np.where(twice, values, 0.0) for values in (deviation, r_meas, r_pim, mean, mean**2, spread, n * mean))
    return [n, (n > 0).astype(np.float64), twice.astype(np.float64), *repeated]


def _statistics(totals: Floats) -> dict[str, Floats]:
    of = dict(zip(_TOTALS, totals.T, strict=True))
    n = of["n_repeated"]
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = (of["square"] - of["mean"] ** 2 / n) / (n - 1.0)
        half = 0.5 * of["spread"] / n
        return {
            "n_observations": of["n_observations"],
            "n_unique": of["n_unique"],
            "n_repeated": n,
            "r_merge": of["deviation"] / of["sum"],
            "r_meas": of["deviation_meas"] / of["sum"],
            "r_pim": of["deviation_pim"] / of["sum"],
            "cc_half_sigma_tau": np.where(n > 1, (variance - half) / (variance + half), np.nan),
        }
