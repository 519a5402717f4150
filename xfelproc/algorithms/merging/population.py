"""What lattices have in common: to which mean, and how strongly, the parameters of each are restrained.

The spread of a parameter over the lattices is itself fitted to them, as the likeliest under x ~ N(mean, spread² + 1/h), where x is
what a lattice by itself says of its parameter and h its information (empirical Bayes: Efron & Morris 1973, J. Am. Stat. Assoc. 68,
117). What all lattices have alike is then as good as not refined, and what differs is refined as far as each lattice tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.lattice_models import N_FIXED, LatticeModels
from xfelproc.algorithms.merging.settings import Merge

Floats = NDArray[np.float64]
Arrays = dict[str, NDArray[Any]]

TRIED: Floats = 3e-3 * 10.0 ** (np.arange(32) / 8.0)
"""Spreads that are tried, over those expected: from a 300th to 20 times."""
DOUBT = float(np.log(30.0))
"""Standard deviation of the logarithm of a spread about the one expected: of few lattices that says something."""
EXPECTED = {"b": 10.0, "rotation": float(np.radians(0.02)), "width": 0.3, "cell": 0.002}
"""Å², radians, of the logarithm, relative."""
SIGNIFICANT = 3.0
"""Gain of the log-likelihood that cells which differ must bring: then they are worth their parameters (chance: 1 %)."""
ALIKE = 2e-5
"""Spread of a strain below which all cells are alike."""


@dataclass(frozen=True)
class Population:
    """Mean and spread of the parameters of lattices, (6 + k,), in the order of `LatticeModels.parameters`.

    Nothing is said of scales. ``known`` is whether the widths' means are those of refined lattices.
    """

    mean: Floats
    spread: Floats
    known: bool = False

    @classmethod
    def expected(cls, settings: Merge, widths: Floats, n_strains: int) -> Population:
        """Return what is expected before lattices are refined: spreads as set, else the usual ones."""
        mean, spread = np.zeros(N_FIXED + n_strains), np.ones(N_FIXED + n_strains)
        mean[4:N_FIXED] = np.log(np.maximum(widths, 1e-12)) if settings.fits_width else 0.0
        for kind, rows in _kinds(n_strains):
            spread[rows] = _given(settings)[kind] or EXPECTED[kind]
        return cls(mean, spread)

    @property
    def alike(self) -> NDArray[np.bool_]:
        """Which strains (k,) no lattice has."""
        none: NDArray[np.bool_] = self.spread[N_FIXED:] < ALIKE
        return none

    def sums(self, models: LatticeModels) -> Floats:
        """Return the sums over lattices that `fitted` wants, (6 + k, tried, 4); those of all blocks are added."""
        out = np.zeros((len(self.mean), len(TRIED), 4))
        for kind, rows in _kinds(len(self.mean) - N_FIXED):
            for u in rows:
                known = np.flatnonzero(models.used & (models.information[:, u] > 0))
                x = models.estimate[known, u] - self.mean[u]
                w = 1.0 / ((TRIED[:, None] * EXPECTED[kind]) ** 2 + 1.0 / models.information[known, u])
                out[u] = np.column_stack([np.log(w).sum(axis=1), w.sum(axis=1), w @ x, w @ x**2])
        return out

    def fitted(self, sums: Floats, settings: Merge) -> Population:
        """Return mean and spread by the sums over all lattices; spreads that are set stay, and what nothing was said of."""
        mean, spread, given = self.mean.copy(), self.spread.copy(), _given(settings)
        for kind, rows in _kinds(len(mean) - N_FIXED):
            logs, w, wx, wxx = np.moveaxis(sums[rows], 2, 0)
            if not np.any(w > 0):
                continue
            # rotations, B and strains are about none, widths about their own mean
            shift = np.divide(wx, w, out=np.zeros_like(w), where=w > 0) if kind == "width" else np.zeros_like(w)
            likelihood = 0.5 * (logs - wxx + shift * wx).sum(axis=0)
            best = _peak(likelihood - 0.5 * (np.log(TRIED) / DOUBT) ** 2)
            if kind == "cell" and likelihood[round(best)] - likelihood[0] < SIGNIFICANT:
                best = 0.0
            steps = np.arange(len(TRIED))
            mean[rows] += [np.interp(best, steps, row) for row in shift]
            spread[rows] = given[kind] or np.exp(np.interp(best, steps, np.log(TRIED))) * EXPECTED[kind]
        return Population(mean, spread, True)

    def arrays(self) -> Arrays:
        """Return it as named arrays; `from_arrays` takes them back."""
        return {"mean": self.mean, "spread": self.spread, "known": np.array(self.known)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Population:
        """Return what `arrays` came from."""
        return cls(np.asarray(arrays["mean"]), np.asarray(arrays["spread"]), bool(arrays["known"]))


def _peak(values: Floats) -> float:
    """Return where a maximum is, by a parabola through three values: rounding moves it as little as it moves these."""
    best = int(np.argmax(values))
    if best in (0, len(values) - 1):
        return float(best)
    left, middle, right = values[best - 1 : best + 2].tolist()
    bend = left - 2.0 * middle + right
    return best + (0.5 * (left - right) / bend if bend < 0.0 else 0.0)


def _kinds(n_strains: int) -> list[tuple[str, list[int]]]:
    """Return the parameters that have a spread in common."""
    fixed = [("b", [1]), ("rotation", [2, 3]), ("width", [4]), ("width", [5])]
    return fixed + [("cell", [N_FIXED + s]) for s in range(n_strains)]


def _given(settings: Merge) -> dict[str, float | None]:
    degrees = settings.rotation_restraint
    return {
        "b": settings.b_restraint,
        "rotation": None if degrees is None else float(np.radians(degrees)),
        "width": settings.width_restraint,
        "cell": settings.cell_restraint,
    }
