from __future__ import annotations

import gzip
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.io.sources.cbf_files import mini_cbf
from tests.io.sources.test_marccd import marccd
from tests.io.sources.test_smv import smv
from xfelproc.errors import DataError
from xfelproc.io.sources import open_source
from xfelproc.io.sources.compression import read_all, read_head
from xfelproc.io.sources.detect import detect


def _hdf5(path: Path) -> bytes:
    with h5py.File(path, "w") as file:
        file["x"] = np.zeros(3)
    return path.read_bytes()


def test_content_tells_the_format_wrapped_or_not(tmp_path: Path) -> None:
    contents = {
        "hdf5": _hdf5(tmp_path / "a.h5"),
        "cbf": mini_cbf(np.ones((2, 2), dtype=np.int32)),
        "smv": smv(),
        "marccd": marccd(),
        "other": b"something else",
    }
    for kind, content in contents.items():
        path = tmp_path / "file"
        path.write_bytes(content)
        assert detect(path) == kind
        path.write_bytes(gzip.compress(content))
        assert detect(path) == kind


def test_a_user_block_before_hdf5_and_cif_without_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(512) + _hdf5(tmp_path / "a.h5"))
    assert detect(path) == "hdf5"
    path.write_bytes(b"# a comment\n\ndata_image\n_array_data.data\n")
    assert detect(path) == "cbf"


def test_wrapped_hdf5_is_refused_with_advice(tmp_path: Path) -> None:
    path = tmp_path / "a.h5.gz"
    path.write_bytes(gzip.compress(_hdf5(tmp_path / "a.h5")))
    with pytest.raises(DataError, match="unwrap"):
        open_source(path)


def test_reading_wrapped_files(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"0123456789"))
    assert read_head(path, 4) == b"0123"
    assert read_all(path) == b"0123456789"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match="cut short"):
        read_all(path)
