"""Differences between groups that were scaled together and merged apart.

The groups share scales and models, and no observation, so that the variances of their intensities add. Amplitudes are those of
French & Wilson (1978). Weights of differences are those of the mean of a normal distribution of differences given one of them with
a normal error (Ursby & Bourgeois 1997, Acta Cryst. A53, 564).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.comparison import relative_scale
from xfelproc.algorithms.merging.reduction import pack
from xfelproc.algorithms.merging.statistics import correlation
from xfelproc.models.difference_tables import DifferenceShellTable, DifferenceTable
from xfelproc.models.tables import AmplitudeTable, MergedTable

Floats = NDArray[np.float64]
A_SHELL = 200
"""Reflections, at least, of which the size of true differences is estimated."""
LEAST_SIGNAL = 0.01
"""Share of the mean variance that the mean square of true differences is taken for at least: weights keep their order."""


@dataclass(frozen=True)
class MergedGroup:
    """A group's merged reflections with their amplitudes, row by row."""

    name: str
    merged: MergedTable
    amplitudes: AmplitudeTable


@dataclass(frozen=True)
class Difference:
    """Differences of a group from its reference; ``log_scale`` and ``b_factor`` (Å²) were taken off the group before."""

    group: str
    reference: str
    table: DifferenceTable
    log_scale: float = 0.0
    b_factor: float = 0.0


def difference(group: MergedGroup, reference: MergedGroup, scale: bool = False) -> Difference:
    """Return the differences of the reflections that both have measured.

    Parameters
    ----------
    group, reference
        Merged apart, of one cell and space group.
    scale
        Fit a relative scale and B by resolution first, see `comparison.relative_scale`.
    """
    keys, others = pack(group.merged["hkl"]), pack(reference.merged["hkl"])
    _, own, its = np.intersect1d(keys, others, assume_unique=True, return_indices=True)
    measured = np.isfinite(group.merged["intensity"][own]) & np.isfinite(reference.merged["intensity"][its])
    own, its = own[measured], its[measured]
    one, two = group.merged.select(own), reference.merged.select(its)
    inverse_d2 = two["d"].astype(np.float64) ** -2.0
    log_scale, slope = relative_scale(inverse_d2, two["intensity"], one["intensity"]) if scale else (0.0, 0.0)
    factor = np.exp(log_scale + slope * inverse_d2)
    root = np.sqrt(factor)
    first, second = group.amplitudes.select(own), reference.amplitudes.select(its)
    amplitude = root * first["amplitude"] - second["amplitude"]
    sigma_amplitude = np.hypot(root * first["sigma"], second["sigma"])
    table = DifferenceTable(
        None,
        **{name: two[name] for name in ("hkl", "d", "centric", "free")},
        intensity=factor * one["intensity"] - two["intensity"],
        sigma=np.hypot(factor * one["sigma"], two["sigma"]),
        half1=factor * one["half1"] - two["half1"],
        half2=factor * one["half2"] - two["half2"],
        amplitude=amplitude,
        sigma_amplitude=sigma_amplitude,
        weight=weights(inverse_d2, amplitude, sigma_amplitude),
        own_intensity=factor * one["intensity"],
        own_amplitude=root * first["amplitude"],
        sigma_own_amplitude=root * first["sigma"],
        reference_intensity=two["intensity"],
        reference_amplitude=second["amplitude"],
        sigma_reference_amplitude=second["sigma"],
    )
    return Difference(group.name, reference.name, table, log_scale, -2.0 * slope)


def weights(inverse_d2: Floats, value: Floats, sigma: Floats) -> Floats:
    """Return S / (S + σ²) of differences (n,), S the mean of value² - σ² of those of similar resolution; NaN where they are."""
    found = np.full(len(value), np.nan)
    known = np.flatnonzero(np.isfinite(value) & np.isfinite(sigma))
    order = known[np.argsort(inverse_d2[known], kind="stable")]
    for rows in np.array_split(order, max(1, len(order) // A_SHELL)):
        if len(rows):
            variance = sigma[rows] ** 2
            signal = max(float(np.mean(value[rows] ** 2 - variance)), LEAST_SIGNAL * float(variance.mean()))
            found[rows] = signal / (signal + variance)
    return found


def difference_statistics(table: DifferenceTable, edges: Floats) -> tuple[DifferenceShellTable, DifferenceShellTable]:
    """Return the statistics of each shell, and of all together (one row).

    ``edges`` (n + 1,) bound the shells in 1/d (1/Å), increasing.
    """
    n = len(edges) - 1
    shell = np.clip(np.searchsorted(edges, 1.0 / table["d"].astype(np.float64), side="right") - 1, 0, n - 1)
    rows = [_row(table.select(shell == i), edges[i], edges[i + 1]) for i in range(n)]
    return _shells(rows), _shells([_row(table, edges[0], edges[-1])])


def _shells(rows: list[dict[str, Any]]) -> DifferenceShellTable:
    return DifferenceShellTable(None, **{c.name: [row[c.name] for row in rows] for c in DifferenceShellTable.SCHEMA})


def _row(table: DifferenceTable, low: float, high: float) -> dict[str, Any]:
    value, sigma, theirs = table["intensity"], table["sigma"], table["reference_intensity"]
    with_amplitude = np.isfinite(table["amplitude"])
    amplitude, sigma_amplitude = table["amplitude"][with_amplitude], table["sigma_amplitude"][with_amplitude]
    halves = np.isfinite(table["half1"]) & np.isfinite(table["half2"])
    excess = _mean(value**2 - sigma**2)
    return {
        "d_max": 1.0 / low if low > 0 else np.inf,
        "d_min": 1.0 / high,
        "n_pairs": len(table),
        "n_amplitudes": int(np.count_nonzero(with_amplitude)),
        "r_iso": _ratio(np.abs(amplitude).sum(), table["reference_amplitude"][with_amplitude].sum()),
        "r_iso_intensity": _ratio(np.abs(value).sum(), theirs.sum()),
        "cc_iso": correlation(table["own_intensity"], theirs),
        "amplitude_signal": _mean(np.abs(amplitude) / sigma_amplitude),
        "chi2": _mean((value / sigma) ** 2),
        "cc_half": correlation(table["half1"][halves], table["half2"][halves]),
        "n_halves": int(np.count_nonzero(halves)),
        "true_difference": _ratio(np.sqrt(max(excess, 0.0)) if np.isfinite(excess) else np.nan, _mean(theirs)),
    }


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below > 0 else float("nan")
