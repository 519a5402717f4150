from __future__ import annotations

import pytest

from xfelproc.report.words import number, r_split


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1234, "12.3 %"), (1.9, "190.0 %"), (2.1, "> 200 %"), (float("inf"), "> 200 %"), (-0.4, "–"), (float("nan"), "–")],
)
def test_r_split(value: float, text: str) -> None:
    assert r_split(value, 1, " %") == text


def test_numbers() -> None:
    assert number(1234.5, 1) == "1,234.5"
    assert number(float("nan"), 1, " %") == "–"
