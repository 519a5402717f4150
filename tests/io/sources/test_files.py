from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfelproc.errors import ConfigError
from xfelproc.io.sources.files import expand_inputs, natural_key, parse_frames, read_frame_list


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


def _names(paths: list[Path]) -> list[str]:
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


@pytest.mark.parametrize(
    ("text", "frames"),
    [
        ("0:10:2,15,12-14", [0, 2, 4, 6, 8, 12, 13, 14, 15]),
        ("7", [7]),
        (":3", [0, 1, 2]),
        ("18:", [18, 19]),
        ("::9", [0, 9, 18]),
        (" 3 - 4 , 3", [3, 4]),
    ],
)
def test_selections(text: str, frames: list[int]) -> None:
    assert parse_frames(text, 20) == frames


@pytest.mark.parametrize("text", ["", "a", "5-3", "0:10:0", "-1", "20", "5:2", "1,,2"])
def test_wrong_selections_are_quoted(text: str) -> None:
    with pytest.raises(ConfigError, match="frames = "):
        parse_frames(text, 20)


def test_an_open_end_needs_the_number_of_frames() -> None:
    with pytest.raises(ConfigError, match="no end"):
        parse_frames("3:")
    assert parse_frames("3:5") == [3, 4]


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 9))
def test_slices_are_those_of_python(start: int, stop: int, step: int) -> None:
    expected = list(range(start, stop, step))
    if expected:
        assert parse_frames(f"{start}:{stop}:{step}") == expected


def test_frame_lists(folder: Path) -> None:
    path = folder / "events.lst"
    path.write_text("x_master.h5 //12\nx_master.h5 7\n# no\na file.cxi run3//4\nb.CBF\n/abs/y.h5 //0 # first\n")
    assert read_frame_list(path) == [
        (folder / "x_master.h5", 12),
        (folder / "x_master.h5", 7),
        (folder / "a file.cxi", "run3//4"),
        (folder / "b.CBF", None),
        (Path("/abs/y.h5"), 0),
    ]
    path.write_text("\n")
    with pytest.raises(ConfigError, match="names no frame"):
        read_frame_list(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_frame_list(folder / "absent.lst")
