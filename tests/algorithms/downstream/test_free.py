from __future__ import annotations

import numpy as np
import pytest

from xfelproc.algorithms.downstream.free import (
    GivenFlags,
    check_crystal,
    drawn_flags,
    extend_flags,
    normalised_flags,
)
from xfelproc.errors import DataError
from xfelproc.geometry.miller import find_space_group, free_flags, possible_reflections, to_asu

CELL = (60.0, 60.0, 70.0, 90.0, 90.0, 120.0)
GROUP = find_space_group("P 3")


def given(d_min: float = 4.0, space_group: str = "P 3", n_values: int = 20) -> GivenFlags:
    """Flags that no hash gives."""
    group = find_space_group(space_group)
    hkl = possible_reflections(CELL, group, d_min, 30.0)
    flag = np.random.default_rng(1).integers(0, n_values, len(hkl)).astype(np.int32)
    return GivenFlags(hkl, flag, n_values, False, CELL, space_group, "old.mtz")


def test_flags_of_the_file_stay_and_are_extended_to_higher_resolution() -> None:
    old = given()
    hkl = possible_reflections(CELL, GROUP, 3.0, 30.0)
    found = extend_flags(hkl, old, CELL, GROUP)
    known = {tuple(h): f for h, f in zip(old.hkl.tolist(), old.flag.tolist(), strict=True)}
    kept = [known.get(tuple(h), -1) for h in hkl.tolist()]
    assert found.n_known == len(old.hkl)
    assert found.n_conflicts == 0
    assert all(k in (-1, f) for k, f in zip(kept, found.flag.tolist(), strict=True))
    new = found.flag[np.array(kept) < 0]
    assert len(new) > 1000
    assert np.mean(new == 0) == pytest.approx(0.05, abs=0.015)
    further = possible_reflections(CELL, GROUP, 2.5, 30.0)
    again = extend_flags(further, old, CELL, GROUP)
    common = {tuple(h): f for h, f in zip(further.tolist(), again.flag.tolist(), strict=True)}
    assert [common[tuple(h)] for h in hkl.tolist()] == found.flag.tolist()


def test_mates_that_the_file_lists_differently_count_as_the_same() -> None:
    old = given()
    rotated = (old.hkl @ np.array([[0, -1, 0], [1, -1, 0], [0, 0, 1]])).astype(np.int32)  # threefold, and Friedel's law
    turned = GivenFlags(-rotated, old.flag, 20, False, CELL, "P 3")
    hkl = old.hkl
    np.testing.assert_array_equal(extend_flags(hkl, turned, CELL, GROUP).flag, old.flag)


def test_a_file_of_lower_symmetry_is_taken_by_majority() -> None:
    higher = find_space_group("P 3 2 1")
    old = given()
    hkl = possible_reflections(CELL, higher, 4.0, 30.0)
    found = extend_flags(hkl, old, CELL, higher)
    assert found.n_known == len(hkl)
    assert found.n_conflicts > 100
    words = check_crystal(old, CELL, higher)
    assert "Laue class" in words[0]


def test_reflections_that_a_twin_law_relates_share_their_flag() -> None:
    hkl = possible_reflections(CELL, GROUP, 3.5, 30.0)
    flags = {tuple(h): f for h, f in zip(hkl.tolist(), drawn_flags(hkl, CELL, GROUP, 20).tolist(), strict=True)}
    mates, _ = to_asu((hkl @ np.diag([-1, -1, 1])).astype(np.int32), GROUP)
    assert all(flags[tuple(h)] == flags[tuple(m)] for h, m in zip(hkl.tolist(), mates.tolist(), strict=True))


def test_pseudo_merohedral_mates_share_it_on_request() -> None:
    cell, group = (60.0, 50.0, 60.0, 90.0, 108.0, 90.0), find_space_group("P 1 21 1")
    hkl = possible_reflections(cell, group, 3.0, 30.0)
    mates, _ = to_asu((hkl @ np.array([[0, 0, -1], [0, -1, 0], [-1, 0, 0]])).astype(np.int32), group)
    for wanted in (True, False):
        flags = {tuple(h): f for h, f in zip(hkl.tolist(), drawn_flags(hkl, cell, group, 20, wanted).tolist(), strict=True)}
        same = [flags[tuple(h)] == flags[tuple(m)] for h, m in zip(hkl.tolist(), mates.tolist(), strict=True) if tuple(m) in flags]
        assert len(same) > 2000
        assert all(same) == wanted


def test_mates_of_a_centred_lattice_share_it_on_request() -> None:
    cell, group = (60.0, 60.0 * np.sqrt(3.0), 70.0, 90.0, 90.05, 90.0), find_space_group("C 1 2 1")
    hkl = possible_reflections(cell, group, 4.0, 30.0)
    flags = {tuple(h): f for h, f in zip(hkl.tolist(), drawn_flags(hkl, cell, group, 20, True).tolist(), strict=True)}
    sixfold = np.array([[0.5, 1.5, 0.0], [-0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    mates, _ = to_asu(np.rint(hkl @ sixfold).astype(np.int32), group)
    same = [flags[tuple(h)] == flags[tuple(m)] for h, m in zip(hkl.tolist(), mates.tolist(), strict=True) if tuple(m) in flags]
    assert len(same) > 1500
    assert all(same)


def test_drawn_flags_are_those_of_merging() -> None:
    hkl = possible_reflections(CELL, GROUP, 3.5, 30.0)
    np.testing.assert_array_equal(drawn_flags(hkl, CELL, GROUP, 20), free_flags(hkl, GROUP, 0.05))


def test_two_valued_files_have_the_rarer_value_as_test_set() -> None:
    hkl = given().hkl
    test = np.random.default_rng(2).random(len(hkl)) < 0.1
    for values in (np.where(test, 1.0, 0.0), np.where(test, 0.0, 1.0), np.where(test, -1.0, 1.0)):
        found = normalised_flags(hkl, values, CELL, "P 3")
        np.testing.assert_array_equal(found.flag == 0, test)
        assert found.binary
        assert found.n_values == pytest.approx(10, abs=1)
    extended = extend_flags(possible_reflections(CELL, GROUP, 3.0, 30.0), found, CELL, GROUP)
    assert set(extended.flag.tolist()) == {0, 1}
    assert np.mean(extended.flag == 0) == pytest.approx(0.1, abs=0.03)


def test_flags_that_are_none_are_refused() -> None:
    hkl = given().hkl
    with pytest.raises(DataError, match="no test set"):
        normalised_flags(hkl, np.ones(len(hkl)), CELL, "P 3", "old.mtz")
    with pytest.raises(DataError, match="count from 1"):
        normalised_flags(hkl, np.arange(len(hkl)) % 10 + 1.0, CELL, "P 3", "old.mtz")


def test_a_file_of_another_cell_is_refused() -> None:
    with pytest.raises(DataError, match=r"old\.mtz.*another crystal form"):
        check_crystal(given(), (60.0, 60.0, 80.0, 90.0, 90.0, 120.0), GROUP)
    assert check_crystal(given(), (60.5, 60.5, 70.0, 90.0, 90.0, 120.0), GROUP) == []
