from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xfelproc.algorithms.merging.reduction import find_space_group, pack, to_asu, unpack
from xfelproc.algorithms.merging.unique import Locator, Multiplicity
from xfelproc.errors import ConfigError

GROUPS = ("P 1", "C 1 2 1", "P 43 21 2", "P 63", "R 3 2:H", "F 4 3 2")


def random_indices(n: int, seed: int = 0, reach: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(-reach, reach + 1, size=(n, 3)).astype(np.int32)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=5), st.sampled_from(GROUPS))
def test_counts_of_parts_add_up(sizes: list[int], symbol: str) -> None:
    group = find_space_group(symbol)
    parts = [random_indices(n, i) for i, n in enumerate(sizes)]
    total = Multiplicity.of(parts[0], group)
    for part in parts[1:]:
        total = total + Multiplicity.of(part, group)
    whole = Multiplicity.of(np.concatenate(parts), group)
    assert np.array_equal(total.keys, whole.keys)
    assert np.array_equal(total.counts, whole.counts)
    assert whole.counts.sum() == sum(sizes)


@pytest.mark.parametrize("symbol", GROUPS)
def test_observations_find_their_rows(symbol: str) -> None:
    group, hkl = find_space_group(symbol), random_indices(500)
    keys = Multiplicity.of(hkl, group).keys
    rows, isym = Locator(unpack(keys), group).find(hkl.astype(np.int16))
    asu, expected = to_asu(hkl, group)
    assert np.array_equal(keys[rows], pack(asu))
    assert np.array_equal(isym, expected)


def test_what_is_not_in_the_list() -> None:
    group = find_space_group("P 43 21 2")
    hkl = random_indices(300)
    unique = unpack(Multiplicity.of(hkl, group).keys)
    rows, _ = Locator(unique[::2], group).find(hkl.astype(np.int16))
    asu = to_asu(hkl, group)[0]
    known = {tuple(h) for h in unique[::2].tolist()}
    assert np.array_equal(rows >= 0, [tuple(h) in known for h in asu.tolist()])
    assert np.all(Locator(unique, group).find(np.array([[90, 1, 1], [-90, 80, 3]], np.int16))[0] == -1)
    assert np.all(Locator(unique[:0], group).find(hkl.astype(np.int16))[0] == -1)


def test_impossible_spans() -> None:
    with pytest.raises(ConfigError, match="d_min"):
        Locator(np.array([[0, 0, 1], [3000, 3000, 3000]], np.int32), find_space_group("P 1"))


def test_unpacked_indices_come_back() -> None:
    hkl = random_indices(100, reach=500)
    assert np.array_equal(unpack(pack(hkl)), hkl)
