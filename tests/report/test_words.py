from __future__ import annotations

import pytest

from xfelproc.report.words import indexing, number, r_split


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1234, "12.3 %"), (1.9, "190.0 %"), (2.1, "> 200 %"), (float("inf"), "> 200 %"), (-0.4, "–"), (float("nan"), "–")],
)
def test_r_split(value: float, text: str) -> None:
    assert r_split(value, 1, " %") == text


def test_numbers() -> None:
    assert number(1234.5, 1) == "1,234.5"
    assert number(float("nan"), 1, " %") == "–"


def test_indexing() -> None:
    assert indexing({}) == ""
    assert indexing({"ambiguous": False}).startswith("No indexing ambiguity")
    operators = [{"operator": "h,k,l", "lattices": 18}, {"operator": "-h,k,-l", "lattices": 11}]
    doubt = {"empty": 0, "undecided": 2, "unrelated": 0}
    found = {"ambiguous": True, "resolved": True, "operators": operators, "doubt": doubt, "n_lattices": 31, "reference": None}
    assert indexing(found) == ("Indexing ambiguity resolved: 18 by h,k,l, 11 by -h,k,-l; 2 of 31 have an unknown setting.")
    assert "resolved against known.mtz: 18" in indexing({**found, "reference": "known.mtz"})
    assert "-h,k,-l: not resolved" in indexing({"ambiguous": True, "resolved": False, "operators": operators})
