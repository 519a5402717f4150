from __future__ import annotations

import struct
from pathlib import Path

import gemmi
import numpy as np
import pytest
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.geometry.cells import b_matrix, rotation_matrix
from xfelproc.io.exchange.mtz import UNMERGED_COLUMNS, BatchModel, MtzHeader, batch_header, new_mtz, read_unmerged
from xfelproc.io.exchange.mtz_pieces import _preamble, unmerged_pieces

CELL = (79.1, 79.1, 38.0, 90.0, 90.0, 90.0)
GROUP = gemmi.SpaceGroup("P 43 21 2")
HEADER = MtzHeader(CELL, "P 43 21 2", 1.305, "a title", ("a note that is long " * 8,))


def rows(n: int, n_lattices: int, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    data = rng.normal(size=(n, 15)) * 1e3
    asu = np.asarray(gemmi.make_miller_array(gemmi.UnitCell(*CELL), GROUP, 3.0, 30.0))
    data[:, :3] = asu[np.sort(rng.integers(len(asu), size=n))]
    data[:, 3] = 1
    data[:, 4] = 1 + 2 * rng.integers(n_lattices, size=n)
    data[:, 6] = np.abs(data[:, 6]) + 1
    return data.astype(np.float32)


def batches(n: int) -> list[BatchModel]:
    u = rotation_matrix([0.4, 0.5, -1.0])
    return [BatchModel(u @ b_matrix(CELL), 1.3 + 0.001 * i, 92.5, 2e-3) for i in range(n)]


def written_by_gemmi(data: NDArray[np.float32], models: list[BatchModel]) -> bytes:
    mtz = new_mtz(HEADER)
    for label, kind in UNMERGED_COLUMNS:
        mtz.add_column(label, kind, dataset_id=1)
    mtz.set_data(data)
    mtz.sort_order = [1, 2, 3, 4, 5]
    for number in np.unique(data[:, 4]).astype(int).tolist():
        mtz.batches.append(batch_header(number - 1, models[number - 1]))
    return bytes(mtz.write_to_bytes())


def in_pieces(data: NDArray[np.float32], models: list[BatchModel], size: int) -> bytes:
    chunks = (data[i : i + size] for i in range(0, len(data), size))
    return b"".join(unmerged_pieces(len(data), chunks, iter(models), HEADER))


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_pieces_are_what_gemmi_writes(size: int) -> None:
    """But for the list of batches, of which gemmi 0.7 leaves some out."""
    data, models = rows(300, 6), batches(12)
    ours, theirs = in_pieces(data, models, size), written_by_gemmi(data, models)
    where = ours.index(b"BATCH      1")
    assert ours[:where] == theirs[:where]
    assert ours[where : where + 80].split() == [b"BATCH", b"1", b"3", b"5", b"7", b"9", b"11"]
    assert ours[where + 80 :] == theirs[where + 80 :]


def test_all_batches_are_listed(tmp_path: Path) -> None:
    data, models = rows(5000, 1500), batches(3000)
    content = in_pieces(data, models, 900)
    path = tmp_path / "unmerged.mtz"
    path.write_bytes(content)
    numbers = np.unique(data[:, 4]).astype(int).tolist()
    mtz = gemmi.read_mtz_file(str(path))
    assert [b.number for b in mtz.batches] == numbers
    assert [b.wavelength for b in mtz.batches] == pytest.approx([models[n - 1].wavelength for n in numbers])
    assert np.array_equal(np.array(mtz), data)
    text = content[80 + data.nbytes :]
    lines = [text[i : i + 80].split() for i in range(0, text.index(b"MTZBATS"), 80)]
    assert [int(n) for line in lines if line[0] == b"BATCH" for n in line[1:]] == numbers
    assert read_unmerged(path).batch.tolist() == data[:, 4].astype(int).tolist()
    whole = written_by_gemmi(data, models)
    assert content[: 80 + data.nbytes] == whole[: 80 + data.nbytes]
    assert content[content.rindex(b"MTZBATS ") :] == whole[whole.rindex(b"MTZBATS ") :]


def test_place_of_the_header_beyond_32_bits() -> None:
    small, large = _preamble(1000), _preamble(200_000_000)
    assert len(small) == len(large) == 80
    assert struct.unpack("<i", small[4:8])[0] == 15 * 1000 + 21
    assert struct.unpack("<i", large[4:8])[0] == -1
    assert struct.unpack("<q", large[12:20])[0] == 15 * 200_000_000 + 21


def test_wrong_number_of_rows() -> None:
    with pytest.raises(DataError, match="no observation"):
        list(unmerged_pieces(0, [], [], HEADER))
    with pytest.raises(DataError, match="301"):
        list(unmerged_pieces(301, [rows(300, 6)], batches(12), HEADER))
