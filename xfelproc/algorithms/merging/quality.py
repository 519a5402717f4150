"""What merging says of the merged data beside tables: error model, normal probability, resolution, negative control."""

from __future__ import annotations

from typing import Any

import numpy as np

from xfelproc.algorithms.merging.cycle import CycleState
from xfelproc.algorithms.merging.final import normal_probability
from xfelproc.algorithms.merging.reference import Sums
from xfelproc.algorithms.merging.resolution import (
    CC_LIMIT,
    I_OVER_SIGMA_LIMIT,
    resolution_by_cc_half,
    resolution_by_i_over_sigma,
)
from xfelproc.models.tables import ShellTable

FALSE_CC = 0.1
"""Correlation of the control in the shells' mean above which it is told of, if it is significant too."""


def quality_of(state: CycleState, sums: Sums, shells: ShellTable) -> dict[str, Any]:
    """Return plain values for ``merge.json``, from the last state, the final sums and the statistics by shell."""
    expected, found = normal_probability(sums["deviations"])
    return {
        "error_model": {"fitted": state.errors.degrees > 0} | state.errors.named,
        "normal_probability": {"expected": np.round(expected, 3).tolist(), "found": np.round(found, 3).tolist()},
        "resolution": {
            "cc_half": resolution_by_cc_half(shells),
            "cc_half_limit": CC_LIMIT,
            "i_over_sigma": resolution_by_i_over_sigma(shells),
            "i_over_sigma_limit": I_OVER_SIGMA_LIMIT,
        },
        "cycles": state.cycle,
    }


def control_warnings(shells: ShellTable) -> list[str]:
    """Return a word if observations that have nothing in common but their resolution correlate between the halves."""
    known = np.isfinite(shells["cc_control"])
    pairs = shells["n_control"][known].astype(np.float64)
    if not pairs.sum():
        return []
    mean = float(shells["cc_control"][known] @ pairs / pairs.sum())
    if mean < max(FALSE_CC, 3.0 / np.sqrt(pairs.sum())):
        return []
    return [
        f"negative control: observations shuffled within each lattice correlate by {mean:.2f} between the halves; a CC1/2 of this"
        " size is no signal"
    ]
