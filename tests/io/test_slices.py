from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from xfelproc.errors import DataError
from xfelproc.io.slices import read_slice, write_slices

ROWS = np.zeros(1000, dtype=[("lattice", "<i4"), ("hkl", "<i4", (3,)), ("intensity", "<f4")])
ROWS["lattice"] = np.arange(1000)
BOUNDS = np.array([0, 10, 10, 999, 1000])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_slices(tmp_path / "chunks" / "a.h5", "of this", ROWS, BOUNDS)
    return tmp_path / "chunks" / "a.h5"


def test_slices_come_back(path: Path) -> None:
    parts = [read_slice(path, "of this", i) for i in range(4)]
    assert [len(p) for p in parts] == [10, 0, 989, 1]
    assert np.array_equal(np.concatenate(parts), ROWS)


def test_other_lineage(path: Path) -> None:
    with pytest.raises(DataError, match="of another run"):
        read_slice(path, "of that", 0)


def test_damage_is_seen_in_the_slice_where_it_is(path: Path) -> None:
    content = bytearray(path.read_bytes())
    where = content.index(np.array([500], "<i4").tobytes() + bytes(12))
    content[where] ^= 1
    path.write_bytes(bytes(content))
    assert len(read_slice(path, "of this", 0)) == 10
    with pytest.raises(DataError, match="damaged"):
        read_slice(path, "of this", 2)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        read_slice(path, "of this", 0)
