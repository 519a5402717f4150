"""To which resolution the merged data go."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xfelproc.models.tables import ShellTable

Floats = NDArray[np.float64]
CC_LIMIT = 0.3
I_OVER_SIGMA_LIMIT = 1.0
FEWEST_SHELLS = 3


def resolution_by_cc_half(shells: ShellTable, limit: float = CC_LIMIT) -> float:
    """Return d (Å) at which CC1/2 falls to ``limit`` by a fit of ½ (1 - tanh((s² - s0²) / w)) to the shells.

    Where it does not fall so far within the data, this is their d_min. Shells count by their number of pairs, since the variance
    of a correlation coefficient is about (1 - cc²)² / n. NaN for fewer than three shells, or if CC1/2 is nowhere above ``limit``.
    """
    known = np.isfinite(shells["cc_half"]) & (shells["n_pairs"] > 2)
    if np.count_nonzero(known) < FEWEST_SHELLS:
        return float("nan")
    s2, cc, pairs = _middle(shells)[known], shells["cc_half"][known], shells["n_pairs"][known].astype(np.float64)
    if np.all(cc < limit):
        return float("nan")
    d_min = float(shells["d_min"][known].min())
    sigma = (1.0 - np.minimum(np.abs(cc), 0.98) ** 2) / np.sqrt(pairs) + 0.02

    def residuals(p: Floats) -> Floats:
        found: Floats = (0.5 * (1.0 - np.tanh((s2 - p[0]) / np.exp(p[1]))) - cc) / sigma
        return found

    from scipy.optimize import least_squares  # a second to import: not at every start

    below = np.flatnonzero(cc < 0.5)
    start = [s2[below[0]] if len(below) else 1.5 * s2[-1], np.log(0.3 * s2[-1])]
    middle, width = least_squares(residuals, start, loss="soft_l1").x
    fallen = middle + np.exp(width) * np.arctanh(1.0 - 2.0 * limit)
    return d_min if fallen >= d_min**-2 else float(1.0 / np.sqrt(max(fallen, s2[0])))


def resolution_by_i_over_sigma(shells: ShellTable, limit: float = I_OVER_SIGMA_LIMIT) -> float:
    """Return d (Å) at which the mean I/σ falls to ``limit``: log I/σ is interpolated in 1/d²; see `resolution_by_cc_half`."""
    known = np.isfinite(shells["i_over_sigma"]) & (shells["n_unique"] > 2)
    if not np.any(known):
        return float("nan")
    s2, value = _middle(shells)[known], np.maximum(shells["i_over_sigma"][known], 1e-3)
    below = np.flatnonzero(value < limit)
    if len(below) == 0:
        return float(shells["d_min"][known].min())
    if below[0] == 0:
        return float("nan")
    a, b = below[0] - 1, below[0]
    share = np.log(value[a] / limit) / np.log(value[a] / value[b])
    return float(1.0 / np.sqrt(s2[a] + share * (s2[b] - s2[a])))


def _middle(shells: ShellTable) -> Floats:
    """Return 1/d² of the middles of the shells."""
    middle: Floats = 0.5 * (shells["d_max"] ** -2.0 + shells["d_min"] ** -2.0)
    return middle
