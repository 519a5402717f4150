from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xfelproc.errors import DataError, OutputError
from xfelproc.io.atomic import sweep_temporaries, write_atomic
from xfelproc.io.shards import (
    ShardHeader,
    UnitImages,
    read_control,
    read_frames,
    read_header,
    read_images,
    read_shard,
    shard_path,
    write_shard,
)
from xfelproc.models.frames import Control, UnitResult
from xfelproc.models.tables import FrameTable, IndexedTable, LatticeTable, ReflectionTable, SpotTable, Table


def filled(kind: type[Table], n: int, rng: np.random.Generator) -> Any:
    columns: dict[str, Any] = {}
    for column in kind.SCHEMA:
        if column.dtype == "str":
            columns[column.name] = [["", "Å ≤ 3", "a longer reason: 12 spots"][i % 3] for i in range(n)]
        else:
            columns[column.name] = rng.integers(0, 100, (n, *column.shape)).astype(column.dtype)
    return kind(n, **columns)


def unit(n: int) -> UnitResult:
    rng = np.random.default_rng(n)
    return UnitResult(
        filled(FrameTable, n, rng),
        filled(SpotTable, 100 * n, rng),
        filled(LatticeTable, n, rng),
        filled(IndexedTable, 90 * n, rng),
        filled(ReflectionTable, 500 * n, rng),
    )


def test_what_is_between_the_reflections_is_kept_apart(tmp_path: Path) -> None:
    path, result = tmp_path / "000003.h5", unit(2)
    write_shard(path, header(path), result)
    assert read_control(path) is None
    control = Control(np.array([0, 1, 1], np.int32), np.arange(9, dtype=np.int32).reshape(3, 3), np.ones(3, np.float32))
    write_shard(path, header(path), replace(result, control=control))
    found = read_control(path)
    assert found is not None
    for name in ("lattice", "hkl", "intensity"):
        np.testing.assert_array_equal(getattr(found, name), getattr(control, name))
    assert len(read_shard(path).reflections) == 1000


def header(path: Path) -> ShardHeader:
    return ShardHeader(3, "lineage", "cpu", {"HIT": 2}, 1.5, path)


@pytest.mark.parametrize("n", [0, 1, 8])
def test_round_trip(tmp_path: Path, n: int) -> None:
    path, result = tmp_path / "000003.h5", unit(n)
    images = UnitImages(np.ones((1, 4, 5), np.float32), np.full((1, 4, 5), 2, np.float32), 7, 2)
    write_shard(path, header(path), result, images)
    again = read_shard(path)
    for name in ("frames", "spots", "lattices", "indexed", "reflections"):
        before, after = getattr(result, name), getattr(again, name)
        for column in before.SCHEMA:
            assert after[column.name].dtype == before[column.name].dtype
            np.testing.assert_array_equal(after[column.name], before[column.name])
    assert read_header(path) == header(path)
    read = read_images(path)
    assert read is not None
    assert (read.n_frames, read.binning) == (7, 2)
    np.testing.assert_array_equal(read.maximum, images.maximum)
    assert len(read_frames(path)) == n


def test_same_content_same_bytes(tmp_path: Path) -> None:
    for name in ("a.h5", "b.h5"):
        write_shard(tmp_path / name, header(tmp_path / name), unit(4))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


@pytest.mark.parametrize("keep", [0, 10, 1000, -1])
def test_truncated_shard_is_not_done(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.h5"
    write_shard(path, header(path), unit(8))
    path.write_bytes(path.read_bytes()[:keep])
    assert read_header(path) is None
    with pytest.raises(DataError, match="damaged"):
        read_shard(path)


def test_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_shard(path, header(path), unit(8))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(DataError):
        read_shard(path)


def test_a_thousand_files_a_folder(tmp_path: Path) -> None:
    folders: dict[Path, int] = {}
    for number in range(0, 5000):
        parent = shard_path(tmp_path, "process", number).parent
        folders[parent] = folders.get(parent, 0) + 1
    assert max(folders.values()) <= 1000
    assert shard_path(tmp_path, "process", 123) == tmp_path / "shards" / "process" / "000123.h5"


def test_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    write_atomic(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="the disk is full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_sweep(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / ".tmp-host-1-0-a.h5").touch()
    (tmp_path / "x" / "a.h5").touch()
    assert sweep_temporaries(tmp_path) == 1
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["a.h5"]
