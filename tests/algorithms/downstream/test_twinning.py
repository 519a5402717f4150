from __future__ import annotations

import numpy as np
import pytest

from tests.algorithms.downstream.wilson_data import simulated
from xfelproc.algorithms.downstream.analysis import Analysis, analyse
from xfelproc.algorithms.downstream.twinning import fraction_of_l, mean_abs_l, twin_operators
from xfelproc.geometry.miller import find_space_group, pack, to_asu

TRIGONAL = (60.0, 60.0, 70.0, 90.0, 90.0, 120.0)


def analysis(**options: object) -> Analysis:
    data = simulated(**{"cell": TRIGONAL, "space_group": "P 3", "d_min": 3.0, **options})  # type: ignore[arg-type]
    return analyse(data.merged, data.cell, data.group)[1]


def test_mean_l_of_no_and_of_perfect_twinning() -> None:
    assert mean_abs_l(0.0) == pytest.approx(0.5, abs=1e-6)
    assert mean_abs_l(0.5) == pytest.approx(0.375, abs=1e-4)
    assert fraction_of_l(mean_abs_l(0.2)) == pytest.approx(0.2, abs=1e-6)
    assert fraction_of_l(0.6) == 0.0


def test_untwinned_data_look_so() -> None:
    found = analysis()
    assert found.l_test is not None
    assert found.l_test.mean_abs.value == pytest.approx(0.5, abs=0.012)
    assert found.l_test.mean_square.value == pytest.approx(1 / 3, abs=0.012)
    assert found.moments is not None
    assert found.moments.acentric is not None
    assert found.moments.acentric.value == pytest.approx(2.0, abs=4 * found.moments.acentric.sigma)
    assert len(found.twin_laws) == 3
    assert all(law.moments is not None and law.moments.value < 0.03 for law in found.twin_laws)
    assert found.warnings == ()


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.35, 0.5])
@pytest.mark.parametrize("law", [0, 2])
def test_twin_fraction_is_found_by_the_right_law(fraction: float, law: int) -> None:
    found = analysis(twin=(law, fraction), seed=law)
    best = max(found.twin_laws, key=lambda one: one.moments.value if one.moments is not None else 0.0)
    operators = twin_operators(TRIGONAL, find_space_group("P 3"))
    assert best.operator == operators[law].as_hkl().triplet()
    assert best.merohedral
    assert best.moments is not None
    assert best.h_test is not None
    assert best.britton is not None
    # at one half the two members are alike, and what noise leaves of their difference counts as its square root
    assert best.moments.value == pytest.approx(fraction, abs=0.015 if fraction < 0.45 else 0.04)
    assert best.h_test.value == pytest.approx(fraction, abs=0.02 if fraction < 0.45 else 0.05)
    assert best.britton.value == pytest.approx(fraction, abs=0.03 if fraction < 0.45 else 0.06)
    assert found.l_test is not None
    assert found.l_test.mean_abs.value == pytest.approx(mean_abs_l(fraction), abs=0.015)
    assert bool(found.warnings) == (fraction > 0.15)
    if found.warnings:
        assert f"{best.operator} {best.moments.value:.2f}" in found.warnings[0]


def test_perfect_twin_has_the_moments_of_one() -> None:
    found = analysis(space_group="P 63", twin=(0, 0.5), cell=(90.0, 90.0, 80.0, 90.0, 90.0, 120.0))
    assert found.l_test is not None
    assert found.l_test.mean_abs.value == pytest.approx(0.375, abs=0.01)
    assert found.l_test.mean_square.value == pytest.approx(0.2, abs=0.01)
    assert found.moments is not None
    assert found.moments.acentric is not None
    assert found.moments.acentric.value == pytest.approx(1.5, abs=0.05)
    assert found.moments.centric is not None
    assert found.moments.centric.value == pytest.approx(2.0, abs=3.5 * found.moments.centric.sigma)


def test_pseudo_merohedral_law_and_its_obliquity() -> None:
    cell = (60.0, 50.0, 60.4, 90.0, 108.0, 90.0)
    found = analysis(cell=cell, space_group="P 1 21 1", twin=(0, 0.25))
    (law,) = found.twin_laws
    assert law.operator == "-l,-k,-h"
    assert not law.merohedral
    assert 0.1 < law.obliquity < 1.0
    assert law.moments is not None
    assert law.moments.value == pytest.approx(0.25, abs=0.02)


def test_law_of_a_centred_lattice_has_fractions() -> None:
    """A C-centred monoclinic cell with a hexagonal lattice by accident: h' = (h + k)/2 and the like."""
    cell = (60.0, 60.0 * np.sqrt(3.0), 70.0, 90.0, 90.05, 90.0)
    operators = [op.as_hkl().triplet() for op in twin_operators(cell, find_space_group("C 1 2 1"))]
    law = next(i for i, operator in enumerate(operators) if "/2" in operator)
    found = analysis(cell=cell, space_group="C 1 2 1", twin=(law, 0.3))
    best = max(found.twin_laws, key=lambda one: one.moments.value if one.moments is not None else 0.0)
    assert best.operator == operators[law]
    assert best.obliquity < 0.2
    assert best.n_pairs > 1000
    assert best.moments is not None
    assert best.moments.value == pytest.approx(0.3, abs=0.02)


def test_a_holohedral_crystal_has_no_law_and_weak_data_no_test() -> None:
    data = simulated((79.1, 79.1, 38, 90, 90, 90), "P 43 21 2", d_min=3.5, noise=100.0)
    found = analyse(data.merged, data.cell, data.group)[1]
    assert found.twin_laws == ()
    assert found.l_test is None


def test_twinned_statistics_without_a_law_doubt_the_symmetry() -> None:
    """Intensities averaged under a symmetry that the crystal does not have look twinned."""
    operators = [op.as_hkl().triplet() for op in twin_operators(TRIGONAL, find_space_group("P 3"))]
    data = simulated(TRIGONAL, "P 3", d_min=3.0, twin=(operators.index("-h,-k,l"), 0.5))
    higher = find_space_group("P 6 2 2")
    _, rows = np.unique(pack(to_asu(data.merged["hkl"], higher)[0]), return_index=True)
    found = analyse(data.merged.select(rows), data.cell, higher)[1]
    assert found.twin_laws == ()
    assert "symmetry may be too high" in found.warnings[0]
