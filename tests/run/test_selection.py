from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfelproc.errors import ConfigError
from xfelproc.run.selection import select_frames


@pytest.mark.parametrize(
    ("selection", "chosen"),
    [
        (None, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("3", [3]),
        ("2:5", [2, 3, 4]),
        ("2-5", [2, 3, 4, 5]),
        (":3, 8:", [0, 1, 2, 8, 9]),
        ("::4", [0, 4, 8]),
        ("5,1:3,1:4", [1, 2, 3, 5]),
        ("0:8:2,9,4-5", [0, 2, 4, 5, 6, 9]),
        (" 3 - 4 , 3", [3, 4]),
        ((7, 2, 2), [2, 7]),
        ("8:100", [8, 9]),
        ("20:30", []),
    ],
)
def test_selections(selection: Any, chosen: list[int]) -> None:
    assert select_frames(selection, 10).tolist() == chosen


@pytest.mark.parametrize(
    "selection", ["a", "1:2:3:4", "-1", "", "1:5:0", (-1,), "5-3", "0:10:0", "5:2", "1,,2", "1:x", "10", (3, 10)]
)
def test_wrong_selections_are_quoted(selection: Any) -> None:
    with pytest.raises(ConfigError, match=r"is no frame|the step|backwards|there is no frame 10"):
        select_frames(selection, 10)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 9))
def test_slices_are_those_of_python(start: int, stop: int, step: int) -> None:
    expected = list(range(start, stop, step))
    if expected:
        assert select_frames(f"{start}:{stop}:{step}", 100).tolist() == expected
