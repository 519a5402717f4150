from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from xfelproc.errors import DataError
from xfelproc.io.columns import read_columns, write_columns

ARRAYS = {
    "hkl": np.arange(21, dtype=np.int16).reshape(7, 3),
    "used": np.array([True, False]),
    "nothing": np.zeros((0, 3), dtype=np.float32),
    "scalar": np.array(3.5),
    "starts": np.arange(1000),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_columns(tmp_path / "leaves" / "a.bin", "of this", ARRAYS)
    return tmp_path / "leaves" / "a.bin"


def test_arrays_come_back(path: Path) -> None:
    found = read_columns(path, "of this")
    assert list(found) == list(ARRAYS)
    for name, values in ARRAYS.items():
        assert found[name].dtype == values.dtype
        assert found[name].shape == values.shape
        assert np.array_equal(found[name], values)
    assert list(read_columns(path, "of this", ["starts", "used"])) == ["starts", "used"]


def test_what_is_wrong_is_said(path: Path) -> None:
    with pytest.raises(DataError, match="of another run"):
        read_columns(path, "of that")
    with pytest.raises(DataError, match="no array 'isym'"):
        read_columns(path, "of this", ["isym"])
    with pytest.raises(DataError, match="missing"):
        read_columns(path.with_name("b.bin"), "of this")


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "text"])
def test_damage_is_seen(path: Path, damage: str) -> None:
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-100] ^= 1
    path.write_bytes({"flipped": bytes(content), "truncated": bytes(content[:-200]), "empty": b"", "text": b"{}\n"}[damage])
    with pytest.raises(DataError):
        read_columns(path, "of this", ["starts"])
    if damage in ("flipped", "truncated"):
        assert np.array_equal(read_columns(path, "of this", ["hkl"])["hkl"], ARRAYS["hkl"])
