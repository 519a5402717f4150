from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfelproc.errors import ConfigError
from xfelproc.io.sources.files import find_inputs
from xfelproc.io.sources.folders import (
    ASKED_SINGLY,
    Listing,
    frame_files,
    is_frame_file,
    list_files,
    matching,
    natural_key,
    suffix_of,
)


def plain_key(name: str) -> list[tuple[int, int, int, str]]:
    """Natural order, written down as it is meant."""
    parts = re.split(r"([0-9]+)", name)
    return [(1, int(part), -len(part), "") if i % 2 else (0, 0, 0, part) for i, part in enumerate(parts)]


names = st.text(st.sampled_from("0019ab_.-é"), max_size=10)


@given(st.lists(names))
def test_natural_order(some: list[str]) -> None:
    # where a name ends with its number, nothing follows; plain_key has an empty text there
    assert sorted(some, key=natural_key) == sorted(some, key=plain_key)


def test_numbers_count_as_numbers() -> None:
    assert sorted(["f_10", "f_2", "f_02", "f_1x", "f", "f_"], key=natural_key) == ["f", "f_", "f_1x", "f_02", "f_2", "f_10"]


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a.cbf", ".cbf"),
        ("A.CBF.GZ", ".cbf.gz"),
        ("x.img.bz2", ".img.bz2"),
        ("x.mar3450", ".mar3450"),
        ("x.h5", ".h5"),
        ("x.tif", ""),
        ("x.edf.gz", ""),
        ("cbf", ""),
        (".gz", ""),
        ("gz", ""),
        ("x.h5.gz", ""),
    ],
)
def test_suffixes(name: str, suffix: str) -> None:
    assert suffix_of(name) == suffix


def test_frame_files_by_name() -> None:
    assert [is_frame_file(n) for n in ("a.cbf", "a.CBF.xz", ".a.cbf", "a.txt", "a.gz", "a.mar2300")] == [
        True,
        True,
        False,
        False,
        False,
        True,
    ]


def test_links(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"x")
    (tmp_path / "sub.cbf").mkdir()
    (tmp_path / "link.cbf").symlink_to("real")
    (tmp_path / "gone.cbf").symlink_to("nothing")
    (tmp_path / "folder").symlink_to("sub.cbf")
    assert list_files(str(tmp_path), lambda name: True) == ["gone.cbf", "link.cbf", "real"]
    assert frame_files(str(tmp_path)) == ["gone.cbf", "link.cbf"]


def test_patterns_over_folders(tmp_path: Path) -> None:
    for name in ("run10/a_2.cbf", "run2/a_10.cbf", "run2/a_9.cbf", "run2/deep/a_1.cbf", "run2/.hidden.cbf", "run2/.h/a_1.cbf"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")

    def found(pattern: str) -> list[str]:
        pairs = matching(str(tmp_path / pattern))
        return [os.path.relpath(Path(folder) / name, tmp_path) for folder, names in pairs for name in names]

    assert found("run*/*.cbf") == ["run2/a_9.cbf", "run2/a_10.cbf", "run10/a_2.cbf"]
    assert found("run*/a_9.cbf") == ["run2/a_9.cbf"]
    assert found("run2/.*.cbf") == ["run2/.hidden.cbf"]
    everything = ["run2/a_9.cbf", "run2/a_10.cbf", "run2/deep/a_1.cbf", "run10/a_2.cbf"]
    assert found("**/*.cbf") == found("**") == everything
    assert found("none/*.cbf") == found("*.cbf") == []


def test_a_listing_asks_a_few_and_reads_for_many(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "d").mkdir()
    listing = Listing()
    for _ in range(ASKED_SINGLY + 3):
        assert listing.is_file(str(tmp_path / "a"))
        assert listing.exists(str(tmp_path / "d"))
        assert not listing.is_file(str(tmp_path / "d"))
        assert not listing.exists(str(tmp_path / "b"))
        assert not listing.exists(str(tmp_path / "no" / "b"))


def test_long_lists_of_files_and_events(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for i in range(60):
        (data / f"x_{i}.h5").write_bytes(b"x")
    lines = [f"data/x_{i % 60}.h5 //{i}" for i in range(600)] + [f"./data/x_{i}.h5" for i in range(5)] + ["data//x_1.h5"]
    (tmp_path / "all.lst").write_text("\n".join(lines))
    found = find_inputs([f"@{tmp_path / 'all.lst'}"])
    assert found.folders == [str(data)]
    assert found.names == [f"x_{i}.h5" for i in range(60)]
    assert found.chosen(0) is None
    assert found.chosen(7) == tuple(range(7, 600, 60))
    again = find_inputs([data, data / "x_3.h5", str(data / "*.h5")])
    assert again.names == found.names


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(folder: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("xfelproc.io.sources.folders.os.scandir", refused)
    with pytest.raises(ConfigError, match="Permission denied"):
        list_files(str(tmp_path), lambda name: True)
