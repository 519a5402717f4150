"""Which group each frame belongs to: every way to say it, and everything that may be wrong with what is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from pydantic import ValidationError

from xfelproc.algorithms.merging.group_settings import Groups
from xfelproc.errors import ConfigError
from xfelproc.io.manifest import Manifest, Sources, SourceTable
from xfelproc.io.names import FileNames
from xfelproc.run.group_frames import GroupedFrames, RunFrames, file_name, grouped_frames


def manifest(folder: Path, names: list[str], n: int = 6, skip: int = 0) -> Manifest:
    """Frames ``skip`` to ``n`` of each file, in units of 4."""
    sources = Sources(
        FileNames.of([str(folder)], [0] * len(names), names),
        SourceTable(len(names), n_frames=[n] * len(names), chunk_frames=[1] * len(names)),
    )
    index = np.tile(np.arange(skip, n), len(names))
    source = np.repeat(np.arange(len(names)), n - skip).astype(np.int32)
    return Manifest(sources, source, index, np.append(np.arange(0, len(index), 4), len(index)))


def labels(settings: dict[str, Any], *manifests: Manifest, columns: list[dict[str, str]] | None = None) -> GroupedFrames:
    runs = [RunFrames(f"run{i}", (columns or [{}] * len(manifests))[i], m) for i, m in enumerate(manifests)]
    values = np.array([1.0, 1.1, np.nan, 1.2, 1.3, 1.4, 1.5, 1.6])
    return grouped_frames(Groups.model_validate(settings), runs, lambda: values)


def by_table(tmp_path: Path, text: str, *manifests: Manifest) -> GroupedFrames:
    (tmp_path / "groups.csv").write_text(text)
    return labels({"by": "table", "table": str(tmp_path / "groups.csv")}, *manifests)


TABLES = (
    "source,frame,group\na.h5,0,off\na.h5,1,on\nb.h5,,on\n",
    "note\tfile\tevent\tdataset\n\ta.h5\t//0\toff\n\ta.h5\tentry//1\ton\n\tb.h5\t\ton\n",
    "# a list\na.h5 //0 off\n\na.h5 //1 on\nb.h5 on\n",
)


@pytest.mark.parametrize("text", TABLES)
def test_tables_and_lists(tmp_path: Path, text: str) -> None:
    found = by_table(tmp_path, text, manifest(tmp_path, ["a.h5"]), manifest(tmp_path, ["b.h5"], skip=3))
    assert found.names == ("off", "on")
    assert found.group.tolist() == [0, 1, -1, -1, -1, -1, 1, 1, 1]
    assert found.offsets.tolist() == [0, 4, 6, 9]
    assert found.counts == [1, 4]
    assert found.warnings == ("merge.groups.table groups.csv: says nothing of 4 of 9 frames: in no group",)


def test_names_are_paths_or_bare(tmp_path: Path) -> None:
    one, two = manifest(tmp_path / "r1", ["x 1.h5"], 2), manifest(tmp_path / "r2", ["x 1.h5"], 2)
    found = by_table(tmp_path, f"{tmp_path}/r1/x 1.h5 0 a\nr2/x 1.h5 0 b\n", one, two)
    assert found.group.tolist() == [0, -1, 1, -1]
    with pytest.raises(ConfigError, match=r"2 files are called x 1\.h5: give whole paths"):
        by_table(tmp_path, "source,group\nx 1.h5,a\n", one, two)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("source,frame\na.h5,1\n", "names no column group"),
        ("source,frame,group\na.h5,one,on\n", "line 2: frame 'one' is no number"),
        ("source,frame,group\na.h5,-1,on\n", "line 2: frame '-1' is no number"),
        ("source,frame,group\na.h5,1\n", "line 2 has 2 fields, not 3"),
        ("source,frame,group\na.h5,1,\n", "line 2 has no group"),
        ("source,frame,group\n", "has no row"),
        ("", "has no row"),
        ("a.h5\n", "line 1 is 'a.h5'"),
        ("a.h5 0 on\na.h5 0 off\n", "a frame of a.h5 is in two groups: 'on' by line 1, 'off' by line 2"),
        ("a.h5 0 on/1\na.h5 1 on_1\n", "'on/1' and 'on_1' have one file name, 'on_1'"),
        ("\n".join(f"a.h5 {i} g{i}" for i in range(70)), "70 groups .* at most 64"),
    ],
)
def test_wrong_tables(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        by_table(tmp_path, text, manifest(tmp_path, ["a.h5"]))


def test_unreadable_tables(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.csv: cannot be read: No such file"):
        labels({"by": "table", "table": str(tmp_path / "none.csv")}, manifest(tmp_path, ["a.h5"]))
    (tmp_path / "groups.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is no text"):
        labels({"by": "table", "table": str(tmp_path / "groups.csv")}, manifest(tmp_path, ["a.h5"]))


def test_rows_of_no_frame_are_told(tmp_path: Path) -> None:
    found = by_table(tmp_path, "a.h5 0 on\na.h5 7 on\nc.h5 0 on\n", manifest(tmp_path, ["a.h5"]))
    assert "2 of 3 rows are of no frame of these runs, the first in line 2: a.h5 frame 7" in found.warnings[0]
    none = by_table(tmp_path, "c.h5 0 on\n", manifest(tmp_path, ["a.h5"]))
    assert "none of its 1 rows is of a frame of these runs (the first is of c.h5)" in none.warnings[0]
    assert none.counts == [0]


def with_values(folder: Path, **values: Any) -> Path:
    for name, content in values.items():
        with h5py.File(folder / f"{name}.h5", "w") as file:
            if content is not None:
                file["entry/laser"] = content
    return folder


def by_dataset(folder: Path, names: list[str], **more: Any) -> GroupedFrames:
    return labels({"by": "dataset", "dataset": "entry/laser", **more}, manifest(folder, names))


def test_values_of_a_dataset(tmp_path: Path) -> None:
    with_values(tmp_path, a=np.array([1, 0, 1, 0, 0, 1]), b=0, c=np.array([[1], [0], [10]]), d=None)
    found = by_dataset(tmp_path, ["a.h5", "b.h5", "c.h5", "d.h5", "e.h5"])
    assert found.names == ("0", "1", "10")
    assert found.group.tolist() == [1, 0, 1, 0, 0, 1, *[0] * 6, 1, 0, 2, *[-1] * 15]
    assert "has no value of 15 of 30 frames" in found.warnings[0]
    assert "d.h5 has none" in found.warnings[0]


def test_texts_and_bins_of_a_dataset(tmp_path: Path) -> None:
    with_values(tmp_path, a=["light", "dark"] * 3, b=np.array([0.0, 1.0, 2.0, 3.0, 4.0, np.nan]))
    assert by_dataset(tmp_path, ["a.h5"]).names == ("dark", "light")
    binned = by_dataset(tmp_path, ["b.h5"], edges=[0, 2, 4])
    assert binned.names == ("0-2", "2-4")
    assert binned.group.tolist() == [0, 0, 1, 1, -1, -1]
    with pytest.raises(ConfigError, match="holds text, of which there are no bins"):
        by_dataset(tmp_path, ["a.h5"], bins=2)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "is in no file .*a.h5 has none"), (np.zeros((6, 2)), r"shape \(6, 2\)"), (np.zeros(6, complex), "holds complex128")],
)
def test_datasets_that_tell_nothing(tmp_path: Path, content: Any, words: str) -> None:
    with_values(tmp_path, a=content)
    with pytest.raises(ConfigError, match=words):
        by_dataset(tmp_path, ["a.h5"])


def test_too_many_values(tmp_path: Path) -> None:
    with_values(tmp_path, a=np.arange(80.0))
    with pytest.raises(ConfigError, match="80 different values, more than 64"):
        labels({"by": "dataset", "dataset": "entry/laser"}, manifest(tmp_path, ["a.h5"], 80))


def test_numbers_of_frames(tmp_path: Path) -> None:
    one = manifest(tmp_path, ["a.h5", "b.h5"])
    assert labels({"by": "frame", "period": 3}, one).group.tolist() == [0, 1, 2] * 4
    found = labels({"by": "frame", "period": 3, "edges": [1, 2, 3]}, one)
    assert (found.names, found.group.tolist()) == (("1-2", "2-3"), [-1, 0, 1] * 4)
    assert found.warnings == ("4 frames are outside of merge.groups.edges: in no group",)
    assert labels({"by": "frame", "bins": 2}, one).group.tolist() == [0, 0, 0, 1, 1, 1] * 2


def test_wavelengths(tmp_path: Path) -> None:
    one = manifest(tmp_path, ["a.h5"], 8)
    found = labels({"by": "wavelength", "edges": [1.0, 1.25, 1.55]}, one)
    assert (found.names, found.group.tolist()) == (("1-1.25", "1.25-1.55"), [0, 0, -1, 0, 1, 1, 1, -1])
    assert found.warnings == ("1 frames are outside of merge.groups.edges: in no group",)
    halves = labels({"by": "wavelength", "bins": 2}, one)
    assert halves.group.tolist() == [0, 0, -1, 0, 1, 1, 1, 1]
    constant = grouped_frames(Groups(by="wavelength", bins=2), [RunFrames("a", {}, one)], lambda: np.full(8, np.nan))
    assert constant.names == ()
    with pytest.raises(ConfigError, match="from 1 to 1 Å are too often equal"):
        grouped_frames(Groups(by="wavelength", bins=2), [RunFrames("a", {}, one)], lambda: np.ones(8))


def test_runs_and_columns(tmp_path: Path) -> None:
    three = [manifest(tmp_path, [f"{name}.h5"], 2) for name in "abc"]
    assert labels({"by": "run"}, *three).names == ("run0", "run1", "run2")
    doses = [{"dose": "low"}, {"dose": "high"}, {"dose": "low"}]
    found = labels({"by": "column", "column": "dose"}, *three, columns=doses)
    assert (found.names, found.group.tolist()) == (("low", "high"), [0, 0, 1, 1, 0, 0])
    with pytest.raises(ConfigError, match=r"run run0 has no column 'delay' \(it has dose\)"):
        labels({"by": "column", "column": "delay"}, *three, columns=doses)
    alone = labels({"by": "column", "column": "dose"}, three[0])
    assert alone.names == ()
    assert "only a campaign's groups of runs have columns" in alone.warnings[0]


def test_a_reference_that_is_no_group(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no group 'off' \(there are: 0, 1\)"):
        labels({"by": "frame", "period": 2, "reference": "off"}, manifest(tmp_path, ["a.h5"]))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"by": "table"}, 'by = "table" needs table'),
        ({"by": "wavelength"}, "needs edges or bins"),
        ({"by": "frame"}, "needs period, edges or bins"),
        ({"by": "frame", "edges": [1, 2], "bins": 2}, "edges or bins, not both"),
        ({"by": "run", "bins": 2}, "edges and bins are for by = frame, wavelength, dataset"),
        ({"by": "frame", "edges": [1]}, "two or more, ascending"),
        ({"by": "frame", "edges": [1, 1]}, "two or more, ascending"),
    ],
)
def test_settings_that_contradict(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Groups.model_validate(settings)


def test_names_of_files() -> None:
    assert file_name("10 µs/on") == "10_µs_on"
