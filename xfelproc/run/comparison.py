"""Merged data of a run against given intensities (``merge.compare_to``)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np

from xfelproc.algorithms.merging.comparison import intensities_of, scaled_reference, with_comparison
from xfelproc.algorithms.merging.merge import MergeResult
from xfelproc.algorithms.merging.settings import Merge
from xfelproc.errors import DataError
from xfelproc.geometry.lattice_symmetry import cell_deviation
from xfelproc.io.exchange.reference import ReferenceData, read_reference

SAME_CELL = 0.03
"""Relative difference of lengths, and degrees / 100 of angles, beyond which other crystals are compared."""


def compared(result: MergeResult, settings: Merge, group: gemmi.SpaceGroup) -> MergeResult:
    """Return a result with the agreement to the intensities of ``settings.compare_to`` in its statistics, and warnings.

    A file that cannot be read, and intensities of another crystal form, are not compared, with a word: the merged data are none the
    worse.
    """
    if settings.compare_to is None:
        return result
    path = Path(settings.compare_to)
    try:
        data = read_reference(path)
    except DataError as error:
        return replace(result, warnings=(*result.warnings, f"merge.compare_to: {error}: not compared"))
    if problem := _problem(data, result, group):
        return replace(result, warnings=(*result.warnings, f"merge.compare_to {path.name}: {problem}: not compared"))
    found = intensities_of(result.merged, data.hkl, data.intensity, group)
    reference = scaled_reference(result.merged, found)
    shells, overall = (with_comparison(table, result.merged, reference) for table in (result.shells, result.overall))
    warnings = result.warnings
    if not np.any(np.isfinite(found)):
        warnings = (*warnings, f"merge.compare_to {path.name}: has none of the merged reflections")
    return replace(result, shells=shells, overall=overall, warnings=warnings)


def _problem(data: ReferenceData, result: MergeResult, group: gemmi.SpaceGroup) -> str:
    """Return why the data cannot be compared, empty if they can."""
    length, angle = cell_deviation(data.cell, result.cell)
    if max(length, angle / 100.0) > SAME_CELL:
        shown = [" ".join(f"{v:.2f}" for v in cell) for cell in (data.cell, result.cell)]
        return f"its cell is {shown[0]}, that of the merged data {shown[1]}"
    theirs = gemmi.find_spacegroup_by_name(data.space_group)
    if theirs is None or theirs.laue_str() != group.laue_str():
        return f"{data.space_group} has another Laue group than {group.xhm()}"
    return ""
