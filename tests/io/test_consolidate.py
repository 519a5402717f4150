from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from tests.run.test_run import job, run
from xfelproc.errors import ConfigError, DataError, OutputError
from xfelproc.io import consolidate as module
from xfelproc.io.consolidate import LINKS, Consolidated, WholeShards, columns_of, consolidate
from xfelproc.io.shards import TABLES, read_shard, shard_path
from xfelproc.models.frames import UnitResult

WORDS = ["hit", "blank", "truncated", *["hit"] * 11]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Shards of four units; not to be written to."""
    folder = tmp_path_factory.mktemp("run")
    run(job(folder, WORDS), folder / "run")
    return [shard_path(folder / "run", "process", unit) for unit in range(4)]


def written(shards: list[Path], output: Path, **options: Any) -> Consolidated:
    return consolidate(WholeShards(shards), 1, lambda number: f"/data/{number}.h5", output, {"title": "é"}, **options)


@pytest.mark.parametrize("rows_a_chunk", [5, 1_000_000])
def test_columns_are_those_of_the_shards(shards: list[Path], tmp_path: Path, rows_a_chunk: int) -> None:
    done = written(shards, tmp_path / "x.zarr", rows_a_chunk=rows_a_chunk)
    group = zarr.open_group(tmp_path / "x.zarr", mode="r", zarr_format=3)
    results = [read_shard(path) for path in shards]
    for name, kind in TABLES.items():
        table = kind.concatenate([getattr(result, name) for result in results])
        assert done.rows[name] == len(table)
        for column in kind.SCHEMA:
            array = group[f"{name}/{column.name}"]
            assert isinstance(array, zarr.Array)
            assert array.chunks[0] == max(1, min(len(table), rows_a_chunk))
            if (name, column.name) not in LINKS:
                assert array[:].tolist() == table[column.name].tolist(), (name, column.name)  # type: ignore[union-attr]
    assert group["sources/path"][:].tolist() == ["/data/0.h5"]  # type: ignore[index, union-attr]
    assert group.attrs["title"] == "é"


def rows_of_frame(result: UnitResult, row: int) -> list[float]:
    lattices = np.flatnonzero(result.lattices["frame"] == row)
    return [float(v) for v in result.reflections["intensity"][np.isin(result.reflections["lattice"], lattices)]]


def test_links_lead_to_the_rows_of_the_run(shards: list[Path], tmp_path: Path) -> None:
    written(shards, tmp_path / "x.zarr", rows_a_chunk=7)
    group: Any = zarr.open_group(tmp_path / "x.zarr", mode="r")
    frame_of_lattice, lattice = group["lattices/frame"][:], group["reflections/lattice"][:]
    frame_of_reflection = frame_of_lattice[lattice]
    spot = group["indexed/spot"][:]
    assert np.array_equal(group["spots/frame"][:][spot], frame_of_lattice[group["indexed/lattice"][:]])
    for number, (unit, row) in enumerate((u, r) for u in range(4) for r in range(4 if u < 3 else 2)):
        assert group["frames/index"][number] == number
        assert group["frames/unit"][number] == unit
        expected = rows_of_frame(read_shard(shards[unit]), row)
        assert group["reflections/intensity"][:][frame_of_reflection == number].tolist() == expected
        assert (group["spots/frame"][:] == number).sum() == group["frames/n_spots"][number]


def test_units_and_docs_are_attributes(shards: list[Path], tmp_path: Path) -> None:
    written(shards, tmp_path / "x.zarr")
    group: Any = zarr.open_group(tmp_path / "x.zarr", mode="r")
    for name in TABLES:
        for column in columns_of(name):
            attributes = dict(group[f"{name}/{column.name}"].attrs)
            assert attributes["doc"] == column.doc
            assert attributes.get("unit", "") == column.unit
    assert group["indexed/spot"].attrs["row_of"] == "spots"
    assert group["lattices/A"].metadata.dimension_names == ("lattices", "A_0", "A_1")


def test_dask_alone_reads_it(shards: list[Path], tmp_path: Path) -> None:
    da = pytest.importorskip("dask.array", reason="dask is not installed: pip install xfelproc[dask]")
    written(shards, tmp_path / "x.zarr", rows_a_chunk=7)
    intensity = da.from_zarr(str(tmp_path / "x.zarr"), component="reflections/intensity")
    expected = np.concatenate([read_shard(path).reflections["intensity"] for path in shards])
    assert intensity.chunks[0][0] == 7
    assert float(intensity.sum().compute()) == pytest.approx(float(expected.sum()))
    reasons = da.from_zarr(str(tmp_path / "x.zarr"), component="frames/reason").compute()
    assert "the frame is truncated" in reasons[2]


def content(folder: Path) -> dict[str, bytes]:
    """Everything but the CPU times, which are measured."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "frames/times/c" not in str(path)
    }


@pytest.mark.slow
def test_bytes_do_not_depend_on_the_driver(shards: list[Path], tmp_path: Path) -> None:
    run(job(shards[0].parents[3], driver="pool"), tmp_path / "pool")
    written(shards, tmp_path / "x.zarr")
    written([shard_path(tmp_path / "pool", "process", unit) for unit in range(4)], tmp_path / "y.zarr")
    assert content(tmp_path / "x.zarr") == content(tmp_path / "y.zarr")


def test_empty_tables(tmp_path: Path) -> None:
    run(job(tmp_path, ["blank"] * 5), tmp_path / "run")
    written([shard_path(tmp_path / "run", "process", unit) for unit in range(2)], tmp_path / "x.zarr")
    group: Any = zarr.open_group(tmp_path / "x.zarr", mode="r")
    assert group["reflections/hkl"].shape == (0, 3)
    assert group["frames/status"].shape == (5,)


def test_what_is_there_is_kept(shards: list[Path], tmp_path: Path) -> None:
    (tmp_path / "x.zarr").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        written(shards, tmp_path / "x.zarr")


def test_damaged_shard_leaves_nothing(shards: list[Path], tmp_path: Path) -> None:
    (tmp_path / "damaged.h5").write_bytes(shards[2].read_bytes()[:2000])
    with pytest.raises(DataError, match="truncated or damaged"):
        written([*shards[:2], tmp_path / "damaged.h5", shards[3]], tmp_path / "x.zarr")
    assert not [p.name for p in tmp_path.iterdir() if "zarr" in p.name]


def test_full_disk(shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_sync", full)
    with pytest.raises(OutputError, match="disk is full"):
        written(shards, tmp_path / "x.zarr")
    assert not [p.name for p in tmp_path.iterdir() if "zarr" in p.name]


def test_metadata_is_plain_zarr_3(shards: list[Path], tmp_path: Path) -> None:
    written(shards, tmp_path / "x.zarr")
    for path in (tmp_path / "x.zarr").rglob("zarr.json"):
        document = json.loads(path.read_text())
        assert document["zarr_format"] == 3
        codecs = {codec["name"] for codec in document.get("codecs", [])}
        assert codecs <= {"bytes", "blosc", "vlen-utf8", "zstd"}
