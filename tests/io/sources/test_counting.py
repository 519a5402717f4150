"""Frames of a file counted by the way another file holds them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.io.sources import hdf5_files as make
from xfelproc.errors import DataError
from xfelproc.io.sources import open_source
from xfelproc.io.sources.base import FrameSource
from xfelproc.io.sources.settings import SourceSettings


@pytest.fixture
def known(tmp_path: Path) -> FrameSource:
    source = open_source(str(make.write(tmp_path / "a.h5", make.frames(5))), SourceSettings(geometry=make.geom(tmp_path)))
    source.close()
    return source


def test_the_same_dataset_is_counted(tmp_path: Path, known: FrameSource) -> None:
    assert known.count_like(str(make.write(tmp_path / "b.h5", make.frames(7)))) == (7, 1)
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file.create_dataset("/entry/data/data", shape=(40, 48, 64), dtype="u2", chunks=(4, 48, 64))
    assert known.count_like(str(tmp_path / "c.h5")) == (40, 4)


def test_virtual_frames_have_the_chunks_of_their_sources(tmp_path: Path, known: FrameSource) -> None:
    layout = h5py.VirtualLayout((8, 48, 64), "u2")
    for k in range(2):
        with h5py.File(tmp_path / f"part{k}.h5", "w") as file:
            file.create_dataset("x", shape=(4, 48, 64), dtype="u2", chunks=(2, 48, 64))
        layout[4 * k : 4 * k + 4] = h5py.VirtualSource(f"part{k}.h5", "x", shape=(4, 48, 64))
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_virtual_dataset("/entry/data/data", layout)
    assert known.count_like(str(tmp_path / "v.h5")) == (8, 2)
    source = open_source(str(tmp_path / "v.h5"), SourceSettings(geometry=tmp_path / "x.geom"))
    assert (source.n_frames, source.chunk_frames) == (8, 2)


@pytest.mark.parametrize("other", ["name", "shape", "type", "link", "group", "none"])
def test_what_is_held_otherwise_is_not_counted(tmp_path: Path, known: FrameSource, other: str) -> None:
    path = tmp_path / "b.h5"
    shape = (48, 66) if other == "shape" else (48, 64)
    array = make.frames(3, shape, "i4" if other == "type" else "u2")
    if other in ("name", "shape", "type"):
        make.write(path, array, "/entry/data/raw" if other == "name" else "/entry/data/data")
    with h5py.File(path, "a") as file:
        if other == "link":
            file["/entry/data/data"] = h5py.ExternalLink("a.h5", "/entry/data/data")
        if other == "group":
            file.create_group("/entry/data/data")
        if other == "none":
            file.create_dataset("/entry/data/data", shape=(0, 48, 64), dtype="u2")
    assert known.count_like(str(path)) is None


def test_a_file_that_cannot_be_opened(tmp_path: Path, known: FrameSource) -> None:
    (tmp_path / "b.h5").write_bytes(b"x" * 5000)
    with pytest.raises(DataError, match="not HDF5"):
        known.count_like(str(tmp_path / "b.h5"))


def test_frames_named_by_placeholders_are_not_counted(tmp_path: Path) -> None:
    text = make.GEOM.replace("/entry/data/data", "/run%/data").replace("dim0 = %\ndim1 = ss\ndim2 = fs", "dim0 = ss\ndim1 = fs")
    for name in ("a", "b"):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            for run in range(2):
                file[f"run{run}/data"] = np.zeros((48, 64), "u2")
    source = open_source(str(tmp_path / "a.h5"), SourceSettings(geometry=make.geom(tmp_path, text)))
    assert source.n_frames == 2
    assert source.count_like(str(tmp_path / "b.h5")) is None
