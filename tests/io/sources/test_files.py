from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from xfelproc.errors import ConfigError
from xfelproc.io.sources.files import expand_inputs
from xfelproc.io.sources.folders import natural_key


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = [
        "a_2.cbf",
        "a_10.cbf",
        "a_1.cbf.bz2",
        "b.CBF",
        "notes.txt",
        "x_master.h5",
        "x_data_000001.h5",
        "odd[1].img",
        ".hidden.cbf",
    ]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "c_1.cbf").write_bytes(b"x")
    return tmp_path


def _names(paths: Iterable[Path]) -> list[str]:
    return [p.name for p in paths]


def test_patterns_sort_numbers_as_numbers(folder: Path) -> None:
    assert _names(expand_inputs([folder / "a_*.cbf*"])) == ["a_1.cbf.bz2", "a_2.cbf", "a_10.cbf"]
    assert _names(expand_inputs([str(folder / "**" / "c_*.cbf")])) == ["c_1.cbf"]
    assert _names(expand_inputs(["a_2.cbf", "a_*.cbf"], base=folder)) == ["a_2.cbf", "a_10.cbf"]
    assert _names(expand_inputs([folder / "odd[1].img"])) == ["odd[1].img"]
    assert sorted(["x10", "x9", "xa"], key=natural_key) == ["x9", "x10", "xa"]


def test_folders_give_their_frames_and_masters_alone(folder: Path) -> None:
    expected = ["a_1.cbf.bz2", "a_2.cbf", "a_10.cbf", "b.CBF", "odd[1].img", "x_master.h5"]
    assert sorted(_names(expand_inputs([folder]))) == sorted(expected)


def test_lists(folder: Path) -> None:
    (folder / "inner.lst").write_text("b.CBF\n")
    (folder / "list.txt").write_text("# all\na_*.cbf  # two\n\n@inner.lst\n")
    assert _names(expand_inputs([f"@{folder / 'list.txt'}"])) == ["a_2.cbf", "a_10.cbf", "b.CBF"]


@pytest.mark.parametrize("pattern", ["no*.cbf", "absent.cbf", "@absent.txt", "deep"])
def test_what_matches_nothing_is_named(folder: Path, pattern: str) -> None:
    with pytest.raises(ConfigError, match=pattern.lstrip("@").replace("*", r"\*")):
        expand_inputs([pattern], base=folder)


def test_lists_that_are_wrong(folder: Path) -> None:
    (folder / "loop.txt").write_text("@loop.txt\n")
    with pytest.raises(ConfigError, match="names itself"):
        expand_inputs([f"@{folder / 'loop.txt'}"])
    (folder / "bad.txt").write_text("b.CBF\nabsent.cbf\n")
    with pytest.raises(ConfigError, match="line 2"):
        expand_inputs([f"@{folder / 'bad.txt'}"])
    (folder / "none.txt").write_text("# nothing\n")
    with pytest.raises(ConfigError, match="names no file"):
        expand_inputs([f"@{folder / 'none.txt'}"])


def test_lists_of_frames(folder: Path) -> None:
    (folder / "a file 3").write_bytes(b"x")
    path = folder / "events.lst"
    path.write_text(f"x_master.h5 //12\nx_master.h5 7\n# no\na file 3\na file 3 //4\n{folder}/b.CBF //0 # first\nb.CBF //0\n")
    assert expand_inputs([f"@{path}", folder / "a_2.cbf"]) == {
        folder / "x_master.h5": (7, 12),
        folder / "a file 3": None,
        folder / "b.CBF": (0,),
        folder / "a_2.cbf": None,
    }
    path.write_text("absent.h5 //3\n")
    with pytest.raises(ConfigError, match=r"line 1: absent.h5: no such file"):
        expand_inputs([f"@{path}"])
    with pytest.raises(ConfigError, match="cannot be read"):
        expand_inputs([f"@{folder / 'absent.lst'}"])
