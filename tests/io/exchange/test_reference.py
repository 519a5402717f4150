"""Reference intensities from MTZ and mmCIF files."""

from __future__ import annotations

from pathlib import Path

import gemmi
import numpy as np
import pytest

from xfelproc.errors import DataError
from xfelproc.io.exchange.reference import read_reference

HKL = np.array([[1, 0, 0], [2, 1, 0], [0, 0, 4]])


def written(path: Path, columns: dict[str, tuple[str, list[float]]]) -> gemmi.Mtz:
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = gemmi.SpaceGroup("P 4")
    mtz.set_cell_for_all(gemmi.UnitCell(60, 60, 40, 90, 90, 90))
    mtz.add_dataset("x")
    for label, (kind, _) in columns.items():
        mtz.add_column(label, kind)
    mtz.set_data(np.column_stack([HKL, *(values for _, values in columns.values())]).astype(np.float32))
    mtz.write_to_file(str(path))
    return mtz


def test_mean_intensities_before_amplitudes(tmp_path: Path) -> None:
    path = tmp_path / "a.mtz"
    columns = {"FP": ("F", [1.0, 2.0, 3.0]), "IMEAN": ("J", [9.0, np.nan, 5.0]), "SIGIMEAN": ("Q", [1.0, np.nan, 0.5])}
    written(path, columns)
    found = read_reference(path)
    assert found.columns == "IMEAN"
    assert found.hkl.tolist() == [[1, 0, 0], [0, 0, 4]]
    assert found.intensity.tolist() == [9.0, 5.0]
    assert found.sigma.tolist() == [1.0, 0.5]
    assert found.inverse_d2 == pytest.approx([1 / 3600, 16 / 1600])
    assert found.cell == (60, 60, 40, 90, 90, 90)
    assert found.space_group == "P 4"


def test_amplitudes_are_squared(tmp_path: Path) -> None:
    written(tmp_path / "a.mtz", {"FP": ("F", [1.0, 2.0, 3.0]), "SIGFP": ("Q", [0.1, 0.1, 0.5])})
    found = read_reference(tmp_path / "a.mtz")
    assert found.intensity == pytest.approx([1.0, 4.0, 9.0])
    assert found.sigma == pytest.approx([0.2, 0.4, 3.0])
    written(tmp_path / "b.mtz", {"FMODEL": ("F", [1.0, 2.0, 3.0]), "PHI": ("P", [0.0, 0.0, 0.0])})
    assert read_reference(tmp_path / "b.mtz").sigma.tolist() == [0.0, 0.0, 0.0]


def test_friedel_mates(tmp_path: Path) -> None:
    kinds = {"I(+)": ("K", [1.0, 2.0, 3.0]), "SIGI(+)": ("M", [1.0] * 3), "I(-)": ("K", [4.0, np.nan, 6.0])}
    written(tmp_path / "a.mtz", kinds | {"SIGI(-)": ("M", [1.0] * 3)})
    found = read_reference(tmp_path / "a.mtz")
    assert found.intensity.tolist() == [1.0, 2.0, 3.0, 4.0, 6.0]
    assert found.hkl[3].tolist() == [1, 0, 0]


def test_mmcif(tmp_path: Path) -> None:
    mtz = written(tmp_path / "a.mtz", {"IMEAN": ("J", [9.0, 2.0, 5.0]), "SIGIMEAN": ("Q", [1.0, 1.0, 0.5])})
    (tmp_path / "a.cif").write_text(gemmi.MtzToCif().write_cif_to_string(mtz))
    found = read_reference(tmp_path / "a.cif")
    assert sorted(found.intensity.tolist()) == [2.0, 5.0, 9.0]


def test_nothing_to_read(tmp_path: Path) -> None:
    written(tmp_path / "a.mtz", {"FOM": ("W", [0.5] * 3)})
    with pytest.raises(DataError, match=r"no intensities or amplitudes .* its columns are H, K, L, FOM"):
        read_reference(tmp_path / "a.mtz")
    (tmp_path / "b.cif").write_text("data_x\n_cell.length_a 5\n")
    with pytest.raises(DataError, match="cannot be read"):
        read_reference(tmp_path / "b.cif")
