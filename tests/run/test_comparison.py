"""Merged data against given intensities."""

from __future__ import annotations

from pathlib import Path

import gemmi
import numpy as np
import pytest

from tests.algorithms.merging.synthetic import CELL, Truth, halves, observe
from xfelproc.algorithms.merging import Merge, MergeResult, merge, prepare
from xfelproc.run.comparison import compared

GROUP = gemmi.SpaceGroup("P 43 21 2")


@pytest.fixture(scope="module")
def merged() -> tuple[MergeResult, Truth]:
    settings = Merge(max_cycles=4, n_shells=4)
    table, truth = observe(30, 300, d_min=3.5)
    return merge([prepare(table, halves(30), settings)], CELL, "P 43 21 2", settings), truth


def written(path: Path, truth: Truth, cell: tuple[float, ...] = CELL, space_group: str = "P 43 21 2", power: float = 1.0) -> Merge:
    """Write true intensities (power 0.5: amplitudes) to an MTZ; return settings that compare to it."""
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup, mtz.cell = gemmi.SpaceGroup(space_group), gemmi.UnitCell(*cell)
    mtz.add_dataset("truth")
    mtz.add_column("IMEAN" if power == 1.0 else "FP", "J" if power == 1.0 else "F")
    mtz.set_data(np.column_stack([truth.hkl, 7.0 * truth.intensity**power]).astype(np.float32))
    mtz.write_to_file(str(path))
    return Merge(compare_to=str(path))


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_agreement_with_the_truth_is_told_by_shell(merged: tuple[MergeResult, Truth], tmp_path: Path, power: float) -> None:
    result, truth = merged
    found = compared(result, written(tmp_path / "truth.mtz", truth, power=power), GROUP)
    assert found.overall["n_reference"][0] == len(result.merged) == found.shells["n_reference"].sum()
    assert found.overall["cc_reference"][0] > 0.95
    assert 0.0 < found.overall["r_reference"][0] < 0.3
    assert np.all(found.shells["cc_reference"] > 0.8)
    assert found.warnings == result.warnings


def test_nothing_is_compared_unless_asked_for(merged: tuple[MergeResult, Truth]) -> None:
    result, _ = merged
    assert compared(result, Merge(), GROUP) is result
    assert np.all(np.isnan(result.shells["cc_reference"]))


def test_other_crystals_are_told_of_and_not_compared(merged: tuple[MergeResult, Truth], tmp_path: Path) -> None:
    result, truth = merged
    other = compared(result, written(tmp_path / "a.mtz", truth, cell=(85.0, 85.0, 38.0, 90.0, 90.0, 90.0)), GROUP)
    assert "its cell is 85.00 85.00 38.00" in other.warnings[-1]
    assert np.isnan(other.overall["cc_reference"][0])
    lower = compared(result, written(tmp_path / "b.mtz", truth, space_group="P 43"), GROUP)
    assert "P 43 has another Laue group than P 43 21 2" in lower.warnings[-1]
    far = Truth(truth.hkl + np.array([0, 0, 100], dtype=np.int32), truth.intensity, truth.scale, truth.b_factor, 0.0, 0.0)
    assert "none of the merged reflections" in compared(result, written(tmp_path / "c.mtz", far), GROUP).warnings[-1]
    assert "none.mtz: cannot be read" in compared(result, Merge(compare_to=str(tmp_path / "none.mtz")), GROUP).warnings[-1]
