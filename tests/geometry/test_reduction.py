from __future__ import annotations

import gemmi
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xfelproc.geometry.cells import metric_tensor, real_space_basis
from xfelproc.geometry.lattice_characters import (
    GROUPS,
    HIGHEST_FIRST,
    bravais_fits,
    bravais_of,
    distortion,
    lattice_characters,
)
from xfelproc.geometry.lattice_symmetry import (
    cell_deviation,
    point_group_rotations,
    space_group,
    symmetrized_cell,
    symmetrized_orientation,
)
from xfelproc.geometry.reduction import CENTRINGS, cell_of, niggli_transform, primitive_transform, reduced_basis, reduced_cell

CENTRING_OF = {name: name[1] for name in GROUPS}
KNOWN = [
    ("tP", (79.1, 79.1, 38.0, 90, 90, 90)),
    ("oC", (61.4, 122.6, 168.0, 90, 90, 90)),
    ("cI", (78.0, 78.0, 78.0, 90, 90, 90)),
    ("cF", (120.0, 120.0, 120.0, 90, 90, 90)),
    ("cP", (50.0, 50.0, 50.0, 90, 90, 90)),
    ("hR", (90.0, 90.0, 140.0, 90, 90, 120)),
    ("hR", (90.0, 90.0, 30.0, 90, 90, 120)),
    ("hP", (92.9, 92.9, 130.4, 90, 90, 120)),
    ("tI", (70.0, 70.0, 150.0, 90, 90, 90)),
    ("tI", (70.0, 70.0, 50.0, 90, 90, 90)),
    ("oF", (60.0, 80.0, 100.0, 90, 90, 90)),
    ("oI", (60.0, 80.0, 100.0, 90, 90, 90)),
    ("oP", (60.0, 80.0, 100.0, 90, 90, 90)),
    ("mC", (80.0, 50.0, 60.0, 90, 110, 90)),
    ("mP", (45.0, 62.0, 71.0, 90, 104, 90)),
    ("aP", (41.0, 52.0, 63.0, 75, 82, 68)),
]


@given(st.lists(st.floats(-40, 40), min_size=9, max_size=9))
@settings(max_examples=200, deadline=None)
def test_niggli_conditions_hold_and_the_lattice_stays(values):
    basis = np.array(values).reshape(3, 3) + np.diag([50.0, 60.0, 70.0])
    if abs(np.linalg.det(basis)) < 2e4:
        return
    reduced, t = reduced_basis(basis)
    assert abs(round(np.linalg.det(t))) == 1
    assert np.allclose(t @ basis, reduced)
    assert np.linalg.det(reduced) > 0
    a, b, c, x, y, z = (g := reduced @ reduced.T)[0, 0], g[1, 1], g[2, 2], 2 * g[1, 2], 2 * g[0, 2], 2 * g[0, 1]
    eps = 1e-3 * np.trace(g)
    assert a <= b + eps
    assert b <= c + eps
    assert abs(x) <= b + eps
    assert abs(y) <= a + eps
    assert abs(z) <= a + eps
    assert x + y + z + a + b >= -eps
    assert min(x, y, z) >= -eps or max(x, y, z) <= eps


def test_niggli_agrees_with_gemmi():
    rng = np.random.default_rng(1)
    for _ in range(100):
        cell = (*rng.uniform(20, 200, 3), *rng.uniform(65, 115, 3))
        vector = gemmi.GruberVector(gemmi.UnitCell(*cell), "P")
        vector.niggli_reduce()
        assert np.allclose(vector.cell_parameters(), reduced_cell(cell), atol=1e-3)


def test_bad_metrics_and_centrings_are_refused():
    with pytest.raises(ValueError, match="positive definite"):
        niggli_transform(np.diag([1.0, 1.0, -1.0]))
    with pytest.raises(ValueError, match="centring 'X'"):
        primitive_transform("X")
    with pytest.raises(ValueError, match="form no cell"):
        reduced_cell((50, 50, 50, 20, 20, 90))


@pytest.mark.parametrize("centring", list(CENTRINGS))
def test_primitive_bases_have_the_volume_of_one_lattice_point(centring):
    points = {"P": 1, "A": 2, "B": 2, "C": 2, "I": 2, "F": 4, "R": 3}[centring]
    assert np.linalg.det(primitive_transform(centring)) == pytest.approx(1 / points)


@pytest.mark.parametrize("character", lattice_characters(), ids=lambda c: str(c.number))
def test_each_character_gives_the_cell_of_its_bravais_lattice(character):
    """Forms drawn from the condition have a conventional cell of the right shape, and of the right centring."""
    rng = np.random.default_rng(character.number)
    seen = 0
    for _ in range(20):
        form = rng.uniform([50, 50, 50, -25, -25, -25], [100, 100, 100, 25, 25, 25])
        form[3:] = np.abs(form[3:]) if character.positive else -np.abs(form[3:])
        a, b, c, d, e, f = character.projector @ form
        g = np.array([[a, f, e], [f, b, d], [e, d, c]])
        if np.linalg.eigvalsh(g)[0] < 5:
            continue
        seen += 1
        m = character.transform
        assert distortion(m @ g @ m.T, GROUPS[character.bravais])[0] < 1e-6
        to_primitive = primitive_transform(character.bravais[1]) @ m
        assert np.allclose(to_primitive, np.rint(to_primitive))
        assert np.linalg.det(to_primitive) == pytest.approx(1.0)
    assert seen > 3


@pytest.mark.parametrize(("bravais", "cell"), KNOWN)
def test_symmetry_is_found_in_spite_of_errors(bravais, cell):
    rng = np.random.default_rng(7)
    for _ in range(5):
        basis = primitive_transform(bravais[1]) @ real_space_basis(cell) @ (np.eye(3) + rng.normal(scale=0.002, size=(3, 3)))
        fits = bravais_fits(basis, 150.0)
        best = next(fit for name in HIGHEST_FIRST for fit in fits if fit.bravais == name)
        assert best.bravais == bravais
        if bravais != "aP":
            length, angle = cell_deviation(best.cell, cell)
            assert length < 0.01
            assert angle < 0.6
            assert np.allclose(best.cell, cell_of(best.transform @ basis), rtol=0.02)


def test_penalty_is_the_distortion():
    basis = real_space_basis((50.0, 50.5, 70.0, 90, 90, 90))
    fit = next(fit for fit in bravais_fits(basis) if fit.bravais == "tP")
    assert fit.penalty == pytest.approx(50.0, rel=0.02)  # both axes go to 50.25, half a percent away
    basis = real_space_basis((50.0, 60.0, 70.0, 90, 92, 90))
    assert next(fit for fit in bravais_fits(basis) if fit.bravais == "oP").penalty == pytest.approx(200.0, rel=0.02)


@pytest.mark.parametrize(
    ("group", "bravais"),
    [
        ("P 43 21 2", "tP"),
        ("C 2 2 21", "oC"),
        ("P 61 2 2", "hP"),
        ("R 3 2:H", "hR"),
        ("R 3 2:R", "hR"),
        ("I 1 2 1", "mC"),
        ("P 1", "aP"),
    ],
)
def test_bravais_type_of_a_group(group, bravais):
    assert bravais_of(group) == bravais


def test_imposed_symmetry():
    assert symmetrized_cell((92, 93, 130, 90.1, 89.8, 119.5), "P 61 2 2")[:3] == pytest.approx((92.7355, 92.7355, 130), rel=1e-5)
    assert len(point_group_rotations("F 4 3 2")) == 24
    g = metric_tensor(symmetrized_cell((78, 80, 38, 91, 89, 90.5), "P 43 21 2"))
    for r in point_group_rotations("P 43 21 2"):
        assert np.allclose(r.T @ g @ r, g)
    rng = np.random.default_rng(2)
    a = np.linalg.inv(real_space_basis((78, 80, 38, 91, 89, 90.5))) + rng.normal(scale=1e-6, size=(3, 3))
    constrained = symmetrized_orientation(a, "P 43 21 2")
    assert np.allclose(cell_of(np.linalg.inv(constrained))[3:], 90)
    assert np.allclose(symmetrized_orientation(constrained, "P 43 21 2"), constrained)
    with pytest.raises(ValueError, match="'P 99' is not known"):
        space_group("P 99")
