from __future__ import annotations

from pathlib import Path

import gemmi
import numpy as np
import pytest

from xfelproc.errors import DataError
from xfelproc.geometry.cells import b_matrix, rotation_matrix
from xfelproc.io.exchange.mtz import BatchModel, MtzHeader, cell_and_orientation, merged_mtz, read_unmerged
from xfelproc.io.exchange.mtz_pieces import unmerged_mtz
from xfelproc.models.conventions import ReflectionFlag
from xfelproc.models.tables import MergedTable, UnmergedTable

CELL = (79.1, 79.1, 38.0, 90.0, 90.0, 90.0)
GROUP = gemmi.SpaceGroup("P 43 21 2")
HEADER = MtzHeader(CELL, "P 43 21 2", 1.305, "a title", ("a note that is long " * 8, "ümlaut"))


def merged() -> MergedTable:
    return MergedTable(
        None,
        hkl=[[1, 0, 1], [2, 1, 3]],
        d=[30.0, 12.0],
        intensity=[10.0, 20.0],
        sigma=[1.0, 2.0],
        multiplicity=[3, 4],
        intensity_plus=[10.0, 21.0],
        sigma_plus=[1.0, 3.0],
        n_plus=[3, 2],
        intensity_minus=[np.nan, 19.0],
        sigma_minus=[np.nan, 3.0],
        n_minus=[0, 2],
        free=[0, 7],
    )


def unmerged() -> UnmergedTable:
    return UnmergedTable(
        None,
        lattice=[0, 2, 2],
        hkl=[[1, 0, 1], [-1, 2, 3], [2, 1, 3]],
        hkl_asu=[[1, 0, 1], [2, 1, 3], [2, 1, 3]],
        isym=[gemmi.ReciprocalAsu(GROUP).to_asu(h, GROUP.operations())[1] for h in ([1, 0, 1], [-1, 2, 3], [2, 1, 3])],
        intensity=[10.0, 20.0, 99.0],
        sigma=[1.0, 2.0, 3.0],
        scale=[0.5, 2.0, 2.0],
        partiality=[0.3, 0.9, 0.8],
        polarization=[0.9, 0.8, 0.7],
        flags=[1, 1, 1 | int(ReflectionFlag.OUTLIER)],
    )


def batches() -> list[BatchModel]:
    u = rotation_matrix([0.4, 0.5, -1.0])
    return [BatchModel(u @ b_matrix(CELL), 1.3 + 0.001 * i, 92.5, 2e-3) for i in range(3)]


def test_merged_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "merged.mtz"
    path.write_bytes(merged_mtz(merged(), HEADER))
    mtz = gemmi.read_mtz_file(str(path))
    assert mtz.title == "a title"
    assert mtz.spacegroup.xhm() == "P 43 21 2"
    assert mtz.cell.parameters == pytest.approx(CELL)
    assert mtz.datasets[1].wavelength == pytest.approx(1.305)
    labels = [c.label for c in mtz.columns]
    assert labels[:5] == ["H", "K", "L", "FreeR_flag", "IMEAN"]
    row = dict(zip(labels, np.array(mtz)[0], strict=True))
    assert row["I(+)"] == 10.0
    assert np.isnan(row["I(-)"])
    assert np.isnan(row["SIGI(-)"])
    assert row["FreeR_flag"] == 0
    assert mtz.rfree_column().label == "FreeR_flag"
    intensities = gemmi.Intensities()
    intensities.import_mtz(mtz, gemmi.DataType.Mean)
    assert intensities.value_array.tolist() == [10.0, 20.0]
    anomalous = gemmi.Intensities()
    anomalous.import_mtz(mtz, gemmi.DataType.Anomalous)
    assert len(anomalous) == 3


def test_unmerged_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "unmerged.mtz"
    path.write_bytes(unmerged_mtz(unmerged(), batches(), HEADER))
    mtz = gemmi.read_mtz_file(str(path))
    assert [b.number for b in mtz.batches] == [1, 3]
    batch = mtz.batches[1]
    assert batch.wavelength == pytest.approx(1.302)
    assert batch.dataset_id == 1
    assert batch.cell.parameters == pytest.approx(CELL, abs=1e-3)
    stored = np.array(list(batch.floats)[6:15]).reshape(3, 3).T
    assert stored == pytest.approx(rotation_matrix([0.4, 0.5, -1.0]), abs=1e-6)
    data = read_unmerged(path)
    assert data.hkl.tolist() == [[1, 0, 1], [-1, 2, 3]], "indices as observed come back through M/ISYM"
    assert data.batch.tolist() == [1, 3]
    assert data.intensity.tolist() == [10.0, 20.0]
    assert data.space_group == "P 43 21 2"


def test_bytes_are_the_same_and_hold_no_traces() -> None:
    one, two = merged_mtz(merged(), HEADER), merged_mtz(merged(), HEADER)
    assert one == two
    assert unmerged_mtz(unmerged(), batches(), HEADER) == unmerged_mtz(unmerged(), batches(), HEADER)
    for word in (b"202", str(Path.cwd()).encode()):
        assert word not in one[80 + 4 * 2 * 13 :]


def test_history_has_lines_of_80(tmp_path: Path) -> None:
    content = merged_mtz(merged(), HEADER)
    start = content.index(b"MTZHIST")
    lines = content[start + 80 : content.index(b"MTZENDOFHEADERS")]
    assert len(lines) % 80 == 0
    assert lines.isascii()
    assert b"\0" not in lines


def test_nothing_merged_is_no_file() -> None:
    with pytest.raises(DataError, match="min_multiplicity"):
        merged_mtz(MergedTable(0), HEADER)


def test_orientation_is_a_rotation() -> None:
    rotation = rotation_matrix([1.0, 2.0, 0.3])
    cell, u = cell_and_orientation(rotation @ b_matrix((50.0, 60.0, 70.0, 80.0, 95.0, 110.0)))
    assert cell == pytest.approx((50.0, 60.0, 70.0, 80.0, 95.0, 110.0))
    assert u == pytest.approx(rotation)


def test_wrong_files(tmp_path: Path) -> None:
    path = tmp_path / "x.mtz"
    with pytest.raises(DataError, match="cannot be read"):
        read_unmerged(path)
    path.write_bytes(b"no mtz")
    with pytest.raises(DataError, match="cannot be read"):
        read_unmerged(path)
    path.write_bytes(merged_mtz(merged(), HEADER))
    with pytest.raises(DataError, match="BATCH"):
        read_unmerged(path)
