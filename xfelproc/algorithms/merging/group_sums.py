"""The sums that the groups of lattices are merged of: those of `final.final_sums`, group by group.

Scales and models are common to all groups, so that their merged intensities are on one scale.
"""

from __future__ import annotations

import numpy as np

from xfelproc.algorithms.merging.cycle import CycleState
from xfelproc.algorithms.merging.filters import counts_by_reason
from xfelproc.algorithms.merging.final import final_sums
from xfelproc.algorithms.merging.lattice_block import LatticeBlock
from xfelproc.algorithms.merging.lattice_models import LatticeModels
from xfelproc.algorithms.merging.reference import Sums

NUMBERS = "numbers"
"""Lattices of a group, those of them that are merged, and the sum of the wavelengths of the latter (Å)."""


def group_sums(block: LatticeBlock, models: LatticeModels, state: CycleState, n_groups: int) -> Sums:
    """Return the sums of each group's observations in a block; `sums_of_group` takes those of one."""
    found: Sums = {}
    for number in range(n_groups):
        rows = np.flatnonzero(block.lattice_group == number)
        own, own_models = block.select_lattices(rows), models.select(rows)
        sums, merged = final_sums(own, own_models, state)
        used = np.bincount(own.lattice[merged], minlength=own.n_lattices) > 0
        sums["reasons"] = counts_by_reason(own_models.reason)
        sums[NUMBERS] = np.array([len(rows), np.count_nonzero(used), own.wavelength[used].sum()])
        found |= {f"{_prefix(number)}{name}": values for name, values in sums.items()}
    return found


def _prefix(number: int) -> str:
    return f"group{number}."


def is_of_group(name: str) -> bool:
    """Return whether an array of sums is that of a group."""
    return name.startswith("group") and "." in name


def sums_of_group(sums: Sums, number: int) -> Sums:
    """Return the sums of one group under the names of `final.final_sums`, with ``reasons`` and `NUMBERS`."""
    start = _prefix(number)
    return {name.removeprefix(start): values for name, values in sums.items() if name.startswith(start)}
