from __future__ import annotations

from itertools import pairwise

import pytest

from xfelproc.run.stage_cell import centring_of, sampling_order
from xfelproc.run.target import holohedry


@pytest.mark.parametrize(
    ("cell", "group"),
    [
        ((79.1, 79.1, 38.0, 90, 90, 90), "P 4 2 2"),
        ((93.0, 93.0, 130.0, 90, 90, 120), "P 6 2 2"),
        ((50.0, 50.0, 50.0, 90, 90, 90), "P 4 3 2"),
        ((50.0, 60.0, 70.0, 90, 90, 90), "P 2 2 2"),
        ((50.0, 60.0, 70.0, 90, 104, 90), "P 1 2 1"),
        ((50.0, 60.0, 70.0, 80, 104, 95), "P 1"),
        ((79.1, 80.1, 38.0, 90, 90, 90), "P 2 2 2"),
    ],
)
def test_holohedry(cell: tuple[float, ...], group: str) -> None:
    assert holohedry(cell) == group


@pytest.mark.parametrize(("name", "centring"), [("P 4 2 2", "P"), ("C 1 2 1", "C"), ("R 3 2:H", "R"), ("R 3 2:R", "P")])
def test_centring(name: str, centring: str) -> None:
    assert centring_of(name) == centring


def test_sample_is_spread_over_the_run() -> None:
    order = sampling_order(1000)
    assert sorted(order) == list(range(1000))
    for n in (10, 50, 200):
        gaps = sorted(order[:n])
        assert max(b - a for a, b in pairwise(gaps)) < 3 * 1000 / n
