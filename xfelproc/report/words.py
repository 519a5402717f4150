"""Numbers as the report and the commands show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

DASH = "–"
MEANINGLESS = 2.0
"""R_split above this is of noise: where the error of a half is 1.25 times the mean intensity it is 1, without any signal it has
no value at all, and comes out with either sign."""


def number(value: float, digits: int, unit: str = "") -> str:
    """Return a number in words; a dash for what cannot be computed of so few data."""
    return f"{value:,.{digits}f}{unit}" if np.isfinite(value) else DASH


def r_split(value: float, digits: int, unit: str = "") -> str:
    """Return R_split (a fraction) in per cent, "> 200" or, where the mean intensity is not even positive, a dash."""
    if value > MEANINGLESS:
        return f"> {100 * MEANINGLESS:.0f}{unit}"
    return number(100 * value, digits, unit) if value >= 0 else DASH


def resolution(found: Mapping[str, float]) -> str:
    """Return to which resolution the data go: ``resolution`` of the ``quality`` in merge.json."""
    by_cc, by_signal = (number(found[name], 2, " Å") for name in ("cc_half", "i_over_sigma"))
    limits = found["cc_half_limit"], found["i_over_sigma_limit"]
    return f"Resolution: {by_cc} by CC1/2 ≥ {limits[0]:g} (fit of a tanh), {by_signal} by ⟨I/σ⟩ ≥ {limits[1]:g}."


LEFT_OUT = {
    "few": "too few observations",
    "correlation": "do not correlate to the others",
    "cell": "another cell than the median one",
    "mahalanobis": "a cell unlike the others'",
    "energy": "another photon energy",
    "delta_cc": "CC1/2 is better without",
    "stretch": "of a stretch without which CC1/2 is better",
}
"""Why a lattice was left out of merging, by the names in ``quality.left_out`` of merge.json."""


def left_out(counts: Mapping[str, int], n_lattices: int) -> str:
    """Return how many lattices were left out for which reason, one sentence; nothing if none was."""
    taken = [f"{counts[name]} {why}" for name, why in LEFT_OUT.items() if counts.get(name)]
    return f"left out {sum(counts.values())} of {n_lattices} lattices: {', '.join(taken)}" if taken else ""


def indexing(settings: Mapping[str, Any]) -> str:
    """Return what became of an indexing ambiguity, one sentence: ``settings`` in merge.json; nothing of nothing."""
    if not settings:
        return ""
    if not settings["ambiguous"]:
        return "No indexing ambiguity: the lattice has no rotations but those of the space group."
    names = [operator["operator"] for operator in settings["operators"]]
    if not settings["resolved"]:
        return f"Indexing ambiguity {'; '.join(names[1:])}: not resolved, lattices are merged as they were indexed."
    shares = ", ".join(f"{operator['lattices']} by {operator['operator']}" for operator in settings["operators"])
    unknown = sum(settings["doubt"].values())
    rest = f"; {unknown} of {settings['n_lattices']} have an unknown setting" if unknown else ""
    against = f" against {settings['reference']}" if settings["reference"] else ""
    return f"Indexing ambiguity resolved{against}: {shares}{rest}."
