"""Unmerged MTZ files of any order, read by whole reflections."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import gemmi
import numpy as np
import pytest
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.io.exchange import mtz_observations
from xfelproc.io.exchange.mtz_observations import ObservationFile

CELL = gemmi.UnitCell(40.0, 50.0, 60.0, 90.0, 90.0, 90.0)
GROUP = gemmi.SpaceGroup("P 2 2 2")


def write(path: Path, data: NDArray[np.float64], labels: str = "M/ISYM BATCH I SIGI") -> Path:
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = GROUP
    mtz.set_cell_for_all(CELL)
    mtz.add_dataset("d").wavelength = 1.1
    for label, letter in zip(labels.split(), "YBJQ", strict=False):
        mtz.add_column(label, letter)
    mtz.set_data(data.astype(np.float32))
    mtz.write_to_file(str(path))
    return path


@pytest.fixture
def data() -> NDArray[np.float64]:
    rng = np.random.default_rng(2)
    hkl = np.sort(rng.integers(1, 6, 200) * 100 + rng.integers(0, 2, 200))
    rows = np.zeros((200, 7))
    rows[:, 0], rows[:, 2] = hkl // 100, hkl % 100
    rows[:, 3], rows[:, 4] = rng.choice([1, 258], 200), rng.integers(1, 30, 200)
    rows[:, 5], rows[:, 6] = rng.normal(100, 10, 200), rng.uniform(1, 5, 200)
    rows[7, 6], rows[9, 5] = 0.0, np.nan
    return rows


def test_sorted_files_come_in_parts(data: NDArray[np.float64], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mtz_observations, "ROWS_AT_ONCE", 30)
    file = ObservationFile.open(write(tmp_path / "a.mtz", data))
    assert (file.n_rows, file.wavelength, file.cell) == (200, pytest.approx(1.1), CELL.parameters)
    parts = [part for part in file.rows() if len(part.isym)]
    assert len(parts) > 3
    for before, after in pairwise(parts):
        assert not np.array_equal(before.hkl[-1], after.hkl[0])
    good = data[np.isfinite(data[:, 5]) & (data[:, 6] > 0)].astype(np.float32)
    np.testing.assert_array_equal(np.concatenate([part.intensity for part in parts]), good[:, 5])
    assert set(np.concatenate([part.isym for part in parts]).tolist()) == {1.0, 2.0}


def test_any_other_is_sorted_and_reduced(data: NDArray[np.float64], tmp_path: Path) -> None:
    turned = data.copy()
    turned[::2, :3] *= -1  # outside the asymmetric unit, with ISYM of an index as observed
    turned[::2, 3] = 1
    shuffled = turned[np.random.default_rng(3).permutation(200)]
    (part,) = ObservationFile.open(write(tmp_path / "a.mtz", shuffled)).rows()
    keys = part.hkl @ [1e4, 1e2, 1.0]
    assert np.all(np.diff(keys) >= 0)
    assert len(keys) == 198
    expected = {round(float(v), 3): (i % 2 == 0) for i, v in enumerate(data[:, 5])}
    minus = [expected[round(float(v), 3)] for v, s in zip(part.intensity, part.isym, strict=True) if s % 2 == 0]
    assert sum(minus) >= 98


def test_bad_files_say_what_is_wrong(data: NDArray[np.float64], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column SIGI"):
        ObservationFile.open(write(tmp_path / "a.mtz", data[:, :6], "M/ISYM BATCH I"))
    (tmp_path / "b.mtz").write_bytes(b"no")
    with pytest.raises(DataError, match="cannot be read as MTZ"):
        ObservationFile.open(tmp_path / "b.mtz")
    file = ObservationFile.open(write(tmp_path / "c.mtz", data))
    with pytest.raises(DataError, match="cannot be read as MTZ"):
        list(replace(file, n_rows=10**6).rows())
