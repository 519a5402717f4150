"""The table of merged reflections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import gemmi
import numpy as np

from xfelproc.algorithms.merging.reduction import free_flags, inverse_d2
from xfelproc.algorithms.merging.reference import Arrays
from xfelproc.algorithms.merging.settings import Merge
from xfelproc.algorithms.merging.statistics import GroupSums
from xfelproc.models.tables import MergedTable


def merged_table(rows: Arrays, cell: Sequence[float], group: gemmi.SpaceGroup, settings: Merge) -> tuple[MergedTable, GroupSums]:
    """Return merged reflections and the sums that the statistics want, from `final.merged_rows`."""
    hkl = rows["hkl"]
    d = 1.0 / np.sqrt(np.maximum(inverse_d2(hkl, cell), 1e-300))
    shells = d if settings.free_choice == "thin_shells" else None
    known: dict[str, Any] = {c.name: rows[c.name] for c in MergedTable.SCHEMA if c.name in rows}
    table = MergedTable(None, **known, d=d, free=free_flags(hkl, group, settings.free_fraction, shells))
    keep = rows["multiplicity"] >= settings.min_multiplicity
    if not settings.anomalous:
        rows = rows | {"anomalous": np.full((len(hkl), 2), np.nan)}
    return table.select(keep), GroupSums(**{f.name: rows[f.name][keep] for f in fields(GroupSums)})
