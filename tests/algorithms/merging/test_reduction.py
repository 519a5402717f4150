from __future__ import annotations

import gemmi
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xfelproc.algorithms.merging.reduction import (
    find_space_group,
    free_flags,
    holohedral_group,
    inverse_d2,
    pack,
    possible_reflections,
    reduce_indices,
    to_asu,
)
from xfelproc.errors import ConfigError

GROUPS = [
    "P 1",
    "P 1 21 1",
    "C 1 2 1",
    "P 21 21 21",
    "C 2 2 21",
    "P 41",
    "P 43 21 2",
    "I 4 2 2",
    "P 3",
    "R 3:H",
    "P 3 2 1",
    "P 3 1 2",
    "P 61",
    "P 61 2 2",
    "P 2 3",
    "F 2 3",
    "P 43 3 2",
    "I 1 2 1",
]


@pytest.mark.parametrize("symbol", GROUPS)
def test_reduction_is_gemmis(symbol: str) -> None:
    group = gemmi.SpaceGroup(symbol)
    hkl = np.random.default_rng(3).integers(-9, 10, (300, 3)).astype(np.int32)
    reduced, isym = to_asu(hkl, group)
    asu, operations = gemmi.ReciprocalAsu(group), group.operations()
    for index, got, number in zip(hkl.tolist(), reduced.tolist(), isym.tolist(), strict=True):
        assert (got, number) == (list(asu.to_asu(index, operations)[0]), asu.to_asu(index, operations)[1])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(*[st.integers(-12, 12)] * 3), min_size=1, max_size=60), st.sampled_from(GROUPS))
def test_equivalents_meet_in_one_group(indices: list[tuple[int, int, int]], symbol: str) -> None:
    group = gemmi.SpaceGroup(symbol)
    hkl = np.array(indices, dtype=np.int32)
    rotations = [np.array(op.rot) // op.DEN for op in group.operations().sym_ops]
    images = np.concatenate([sign * hkl @ r for r in rotations for sign in (1, -1)]).astype(np.int32)
    reduced = reduce_indices(images, group)
    assert reduced.starts[-1] == len(images)
    assert len(reduced.unique) == len(reduce_indices(hkl, group).unique)
    assert np.all(np.diff(pack(reduced.unique)) > 0)
    order = reduced.order
    inside = np.split(order, reduced.starts[1:-1])
    assert all(np.all(np.diff(rows) > 0) for rows in inside), "rows keep their order within a reflection"


def test_no_observations() -> None:
    reduced = reduce_indices(np.zeros((0, 3), dtype=np.int32), gemmi.SpaceGroup("P 1"))
    assert len(reduced.unique) == 0
    assert reduced.starts.tolist() == [0]


def test_rhombohedral_axes_are_refused_with_a_word() -> None:
    group = gemmi.SpaceGroup("R 3:R")
    with pytest.raises(ConfigError, match="standard setting"):
        to_asu(np.array([[1, 2, 3]], dtype=np.int32), group)


@pytest.mark.parametrize(
    ("system", "centring", "symbol"),
    [
        ("triclinic", "P", "P 1"),
        ("monoclinic", "C", "C 1 2 1"),
        ("monoclinic", "I", "I 1 2 1"),
        ("orthorhombic", "F", "F 2 2 2"),
        ("tetragonal", "I", "I 4 2 2"),
        ("hexagonal", "P", "P 6 2 2"),
        ("trigonal", "R", "R 3 2:H"),
        ("rhombohedral", "R", "R 3 2:H"),
        ("cubic", "P", "P 4 3 2"),
    ],
)
def test_holohedral_group(system: str, centring: str, symbol: str) -> None:
    assert holohedral_group(system, centring) == symbol


def test_unknown_groups_say_what_to_do() -> None:
    with pytest.raises(ConfigError, match="P 43 21 2"):
        find_space_group("P 99")
    with pytest.raises(ConfigError, match="one of"):
        holohedral_group("quasi", "P")


def test_possible_reflections() -> None:
    cell = (79.1, 79.1, 38.0, 90.0, 90.0, 90.0)
    found = possible_reflections(cell, gemmi.SpaceGroup("P 4 2 2"), 2.0, 30.0)
    assert len(found) == 8602
    d = 1 / np.sqrt(inverse_d2(found, cell))
    assert 2.0 <= d.min() <= d.max() <= 30.0
    unit = gemmi.UnitCell(*cell)
    assert d[:50] == pytest.approx([unit.calculate_d(h) for h in found[:50].tolist()])


def test_free_flags_hold_their_share_and_their_place() -> None:
    cell = (79.1, 79.1, 38.0, 90.0, 90.0, 90.0)
    group = gemmi.SpaceGroup("P 43")
    hkl = possible_reflections(cell, group, 2.0, 30.0)
    flags = free_flags(hkl, group, 0.05)
    assert np.bincount(flags).min() > 0.8 * len(hkl) / 20
    assert np.count_nonzero(flags == 0) == pytest.approx(0.05 * len(hkl), rel=0.15)
    some = np.random.default_rng(0).permutation(len(hkl))[:100]
    assert np.array_equal(free_flags(hkl[some], group, 0.05), flags[some])
    twin = hkl[:, [1, 0, 2]] * np.array([1, 1, -1], dtype=np.int32)
    assert np.array_equal(free_flags(to_asu(twin, group)[0], group, 0.05), flags), "a twin law keeps the free set"


def test_thin_shells_are_whole() -> None:
    cell = (79.1, 79.1, 38.0, 90.0, 90.0, 90.0)
    group = gemmi.SpaceGroup("P 43 21 2")
    hkl = possible_reflections(cell, group, 2.0, 30.0)
    d = 1 / np.sqrt(inverse_d2(hkl, cell))
    flags = free_flags(hkl, group, 0.05, d)
    order = np.argsort(d)
    changes = np.count_nonzero(np.diff(flags[order]))
    assert changes < 0.35 * len(hkl)
    assert np.count_nonzero(flags == 0) == pytest.approx(0.05 * len(hkl), rel=0.4)
