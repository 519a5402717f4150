"""Merged intensities against given ones: CC_iso and R_iso."""

from __future__ import annotations

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.reduction import pack, to_asu
from xfelproc.algorithms.merging.statistics import against
from xfelproc.models.tables import MergedTable, ShellTable

Floats = NDArray[np.float64]
BINS = 20
FEWEST_IN_A_BIN = 10


def intensities_of(merged: MergedTable, hkl: NDArray[np.int32], intensity: Floats, group: gemmi.SpaceGroup) -> Floats:
    """Return the given intensity of each merged reflection, (n_merged,): the mean of its equivalents, NaN without any."""
    return mean_of_equivalents(merged["hkl"], hkl, intensity, group)


def mean_of_equivalents(wanted: NDArray[np.int32], hkl: NDArray[np.int32], intensity: Floats, group: gemmi.SpaceGroup) -> Floats:
    """Return the mean of the given intensities (n,) equivalent to each wanted index of the asymmetric unit, NaN of none."""
    good = np.isfinite(intensity)
    keys = pack(to_asu(hkl[good], group)[0])
    unique, row = np.unique(keys, return_inverse=True)
    mean = np.append(np.bincount(row, intensity[good]) / np.bincount(row), np.nan) if len(unique) else np.array([np.nan])
    own = pack(wanted)
    place = np.searchsorted(unique, own)
    known = place < len(unique)
    known[known] = unique[place[known]] == own[known]
    found: Floats = mean[np.where(known, place, len(mean) - 1)]
    return found


def relative_scale(inverse_d2: Floats, ours: Floats, theirs: Floats) -> tuple[float, float]:
    """Return c and s of the factor exp(c + s / d²) that brings intensities (n,) to the scale of ours.

    Both come from a straight line through the logarithms of the ratios of the sums in bins of resolution; 0 where there is none.
    """
    order = np.argsort(inverse_d2, kind="stable")
    middles, ratios, counts = [], [], []
    for rows in np.array_split(order, max(1, min(BINS, len(order) // FEWEST_IN_A_BIN))):
        one, two = float(ours[rows].sum()), float(theirs[rows].sum())
        if one > 0 and two > 0:
            middles.append(float(inverse_d2[rows].mean()))
            ratios.append(np.log(one / two))
            counts.append(np.sqrt(len(rows)))
    if not ratios:
        return 0.0, 0.0
    slope, constant = np.polyfit(middles, ratios, 1, w=counts) if len(ratios) > 1 else (0.0, ratios[0])
    return float(constant), float(slope)


def scaled_reference(merged: MergedTable, reference: Floats) -> Floats:
    """Return given intensities (n,) (NaN: none) on the scale of the merged ones, by `relative_scale`."""
    known = np.isfinite(reference)
    s2 = merged["d"].astype(np.float64) ** -2.0
    constant, slope = relative_scale(s2[known], merged["intensity"][known], reference[known])
    scaled: Floats = reference * np.exp(constant + slope * s2)
    return scaled


def with_comparison(table: ShellTable, merged: MergedTable, reference: Floats) -> ShellTable:
    """Return statistics by shell with the agreement to given intensities (n_merged,) that are on the scale of the merged ones."""
    d = merged["d"].astype(np.float64)
    rows = []
    for d_max, d_min in zip(table["d_max"], table["d_min"], strict=True):
        inside = (d <= d_max) & (d > d_min) if d_min > d.min(initial=np.inf) else d <= d_max
        rows.append(against(merged["intensity"][inside], reference[inside]))
    names = ("cc_reference", "r_reference", "n_reference")
    return table.replace(**{name: [row[name] for row in rows] for name in names})
