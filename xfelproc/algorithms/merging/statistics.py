"""Statistics of merged intensities by resolution shell.

CC1/2 and CC*: Karplus & Diederichs (2012), Science 336, 1030. R_split: White et al. (2012), J. Appl. Cryst. 45, 335. R_meas:
Diederichs & Karplus (1997), Nat. Struct. Biol. 4, 269. The half-sets are of frames, by a hash; the scales are common to both.
R values here compare observations to scale · partiality · mean, in the units of the observation, so that weak partials do not
rule; those over scaled observations are made of the unmerged rows (`observed`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.observed import nothing_observed
from xfelproc.models.tables import MergedTable, ShellTable

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class GroupSums:
    """What the statistics need of each merged reflection beside the MergedTable; all (n_merged,) unless said.

    ``residual`` and ``total`` are Σ|I - kJ| and ΣI; ``anomalous`` (n, 2) is I(+) - I(-) of each half (NaN: not both measured);
    ``chi2`` is χ² about the mean, ``control`` (n, 2) are the means of the halves of shuffled observations.
    """

    residual: Floats
    total: Floats
    n_rejected: NDArray[np.int64]
    anomalous: Floats
    chi2: Floats
    control: Floats


def shell_edges(d_min: float, d_max: float, n: int) -> Floats:
    """Return n + 1 values of 1/d (1/Å), increasing, that bound shells of equal reciprocal volume."""
    edges: Floats = np.cbrt(np.linspace(d_max**-3, d_min**-3, n + 1))
    return edges


def correlation(x: Floats, y: Floats) -> float:
    """Return Pearson's coefficient, NaN for fewer than 3 pairs or no spread."""
    if len(x) < 3:
        return float("nan")
    dx, dy = x - x.mean(), y - y.mean()
    norm = float(np.sqrt((dx @ dx) * (dy @ dy)))
    return float(dx @ dy) / norm if norm > 0 else float("nan")


def cc_star(cc_half: float) -> float:
    """Return √(2 CC1/2 / (1 + CC1/2)), NaN where CC1/2 is negative or NaN."""
    return float(np.sqrt(2.0 * cc_half / (1.0 + cc_half))) if cc_half >= 0 else float("nan")


def shell_statistics(merged: MergedTable, sums: GroupSums, possible_d: Floats, edges: Floats) -> tuple[ShellTable, ShellTable]:
    """Return the statistics of each shell, and of all shells together (one row).

    Parameters
    ----------
    merged
        Merged reflections.
    sums
        Their sums over observations.
    possible_d
        Resolution (Å) of every reflection that could have been measured.
    edges
        Bounds of the shells in 1/d, see `shell_edges`.
    """
    n = len(edges) - 1
    shell = np.clip(np.searchsorted(edges, 1.0 / merged["d"].astype(np.float64), side="right") - 1, 0, n - 1)
    possible = np.clip(np.searchsorted(edges, 1.0 / possible_d, side="right") - 1, 0, n - 1)
    rows = [
        _statistics(merged, sums, np.flatnonzero(shell == i), int(np.count_nonzero(possible == i)), edges[i], edges[i + 1])
        for i in range(n)
    ]
    everything = _statistics(merged, sums, np.arange(len(merged)), len(possible_d), edges[0], edges[-1])
    # over all shells the fall with resolution would correlate
    everything["cc_control"] = _mean_control(rows)
    return _table(rows), _table([everything])


def _mean_control(rows: list[dict[str, Any]]) -> float:
    known = [(row["cc_control"], row["n_control"]) for row in rows if np.isfinite(row["cc_control"])]
    return float(np.average([cc for cc, _ in known], weights=[n for _, n in known])) if known else float("nan")


def _table(rows: list[dict[str, Any]]) -> ShellTable:
    return ShellTable(None, **{c.name: [row[c.name] for row in rows] for c in ShellTable.SCHEMA})


def _ratio(a: float, b: float) -> float:
    return a / b if b else float("nan")


def _statistics(
    merged: MergedTable, sums: GroupSums, rows: NDArray[np.int64], n_possible: int, low: float, high: float
) -> dict[str, Any]:
    """Return the columns of one row of ShellTable."""
    count = merged["multiplicity"][rows].astype(np.float64)
    intensity, sigma = merged["intensity"][rows], merged["sigma"][rows]
    one, two = merged["half1"][rows], merged["half2"][rows]
    pairs = np.isfinite(one) & np.isfinite(two)
    half = correlation(one[pairs], two[pairs])
    mean_of_halves = float(np.sum(0.5 * (one[pairs] + two[pairs])))
    anomalous = sums.anomalous[rows]
    both = np.all(np.isfinite(anomalous), axis=1)
    return {
        "d_max": 1.0 / low if low > 0 else np.inf,
        "d_min": 1.0 / high,
        "n_possible": n_possible,
        "n_unique": len(rows),
        "n_observations": int(count.sum()),
        "n_rejected": int(sums.n_rejected[rows].sum()),
        "completeness": _ratio(len(rows), n_possible),
        "completeness_twice": _ratio(int(np.count_nonzero(count > 1)), n_possible),
        "multiplicity": _ratio(float(count.sum()), len(rows)),
        "mean_intensity": float(intensity.mean()) if len(rows) else float("nan"),
        "i_over_sigma": float(np.mean(intensity / sigma)) if len(rows) else float("nan"),
        "cc_half": half,
        "cc_star": cc_star(half),
        "r_split": _ratio(float(np.sum(np.abs(one[pairs] - two[pairs]))) / np.sqrt(2.0), mean_of_halves),
        "n_pairs": int(np.count_nonzero(pairs)),
        **nothing_observed(),
        **_residuals(sums.residual[rows], sums.total[rows], count),
        "cc_anomalous": correlation(anomalous[both, 0], anomalous[both, 1]),
        "n_anomalous": int(np.count_nonzero(both)),
        **_bijvoet(merged, rows),
        "chi2": _ratio(float(sums.chi2[rows].sum()), float(np.maximum(count - 1, 0).sum())),
        **_control(sums.control[rows]),
        "cc_off_lattice": float("nan"),
        "n_off_lattice": 0,
        **against(intensity, np.full(len(rows), np.nan)),
    }


def _bijvoet(merged: MergedTable, rows: NDArray[np.int64]) -> dict[str, float]:
    """Return what the Friedel differences of acentric reflections say."""
    rows = rows[(merged["n_plus"][rows] > 0) & (merged["n_minus"][rows] > 0) & ~merged["centric"][rows]]
    names = ("intensity_plus", "intensity_minus", "sigma_plus", "sigma_minus")
    plus, minus, sigma_plus, sigma_minus = (merged[name][rows] for name in names)
    difference, variance = plus - minus, sigma_plus**2 + sigma_minus**2
    excess = float(np.sum(difference**2 - variance)) / max(len(rows), 1)
    mean = float(np.sum(plus + minus)) / (2 * max(len(rows), 1))
    return {
        "anomalous_signal": float(np.mean(np.abs(difference) / np.sqrt(variance))) if len(rows) else float("nan"),
        "bijvoet_ratio": np.sqrt(max(excess, 0.0)) / mean if len(rows) and mean > 0 else float("nan"),
        "n_bijvoet": len(rows),
    }


def _control(control: Floats) -> dict[str, float]:
    both = np.all(np.isfinite(control), axis=1)
    return {"cc_control": correlation(control[both, 0], control[both, 1]), "n_control": int(np.count_nonzero(both))}


def against(intensity: Floats, reference: Floats) -> dict[str, float]:
    """Return the agreement of intensities with given ones on their scale (NaN: none given)."""
    known = np.isfinite(reference)
    ours, theirs = intensity[known], reference[known]
    return {
        "cc_reference": correlation(ours, theirs),
        "r_reference": _ratio(2.0 * float(np.sum(np.abs(ours - theirs))), float(np.sum(ours + theirs))),
        "n_reference": int(np.count_nonzero(known)),
    }


def _residuals(residual: Floats, total: Floats, count: Floats) -> dict[str, float]:
    """Return R_merge, R_meas and R_pim over reflections measured twice or more."""
    twice = count > 1
    residual, count, whole = residual[twice], count[twice], float(total[twice].sum())
    return {
        "r_merge_recorded": _ratio(float(residual.sum()), whole),
        "r_meas_recorded": _ratio(float(np.sum(residual * np.sqrt(count / (count - 1)))), whole),
        "r_pim_recorded": _ratio(float(np.sum(residual * np.sqrt(1.0 / (count - 1)))), whole),
    }
