from __future__ import annotations

import gemmi
import numpy as np
import pytest

from xfelproc.simulation.crystal import Intensities, draw_blocks, draw_crystal, random_intensities, reciprocal_basis
from xfelproc.simulation.settings import BeamSettings, CrystalSettings

CELLS = {
    "P 43 21 2": (79.1, 79.1, 38.0, 90.0, 90.0, 90.0),
    "C 2 2 21": (61.4, 122.6, 168.0, 90.0, 90.0, 90.0),
    "P 61 2 2": (92.9, 92.9, 130.4, 90.0, 90.0, 120.0),
    "P 1 21 1": (40.0, 50.0, 60.0, 90.0, 105.0, 90.0),
    "F 4 3 2": (120.0, 120.0, 120.0, 90.0, 90.0, 90.0),
}


@pytest.fixture(params=CELLS)
def intensities(request: pytest.FixtureRequest) -> Intensities:
    name = str(request.param)
    return random_intensities(CrystalSettings(space_group=name, cell=CELLS[name], d_min=4.0), 7)


def test_table_has_the_symmetry(intensities: Intensities) -> None:
    table, half = intensities.table, np.array(intensities.table.shape) // 2
    rng = np.random.default_rng(0)
    hkl = rng.integers(-half, half + 1, (200, 3))
    for op in intensities.space_group.operations().sym_ops:
        for sign in (1, -1):
            mates = sign * np.array([op.apply_to_hkl(h) for h in hkl.tolist()])
            inside = np.all(np.abs(mates) <= half, axis=1)
            a = table[tuple((hkl[inside] + half).T)]
            b = table[tuple((mates[inside] + half).T)]
            np.testing.assert_array_equal(a, b)


def test_absent_reflections_are_absent(intensities: Intensities) -> None:
    table, half = intensities.table, np.array(intensities.table.shape) // 2
    operations = intensities.space_group.operations()
    present = np.argwhere(table > 0) - half
    assert not any(operations.is_systematically_absent(h) for h in present[::37].tolist())
    assert table[tuple(half)] == 0


def test_wilson_statistics() -> None:
    settings = CrystalSettings(d_min=2.0, b_factor=30.0)
    found = random_intensities(settings, 3)
    q2 = np.sum((found.hkl @ reciprocal_basis(settings.cell).T) ** 2, axis=1)
    operations = found.space_group.operations()
    centric = np.array([operations.is_reflection_centric(h) for h in found.hkl.tolist()])
    epsilon = np.array([operations.epsilon_factor_without_centering(h) for h in found.hkl.tolist()])
    e2 = found.values / epsilon / np.exp(-30.0 * q2 / 2)
    assert e2.mean() == pytest.approx(1.0, abs=0.05)
    assert np.mean(e2[~centric] ** 2) == pytest.approx(2.0, abs=0.15)
    assert np.mean(e2[centric] ** 2) == pytest.approx(3.0, abs=0.6)


def test_reciprocal_basis() -> None:
    cell = CELLS["P 1 21 1"]
    q = reciprocal_basis(cell) @ [2, -1, 3]
    assert 1 / np.linalg.norm(q) == pytest.approx(gemmi.UnitCell(*cell).calculate_d([2, -1, 3]))


def test_crystals_keep_the_symmetry_of_the_cell() -> None:
    crystal = draw_crystal(CrystalSettings(cell_spread=0.01), 100.0, 0.5, np.random.default_rng(1))
    a, b, c = crystal.cell[:3]
    assert a == b
    assert a != 79.1
    np.testing.assert_allclose(np.linalg.norm(np.linalg.inv(crystal.A), axis=1), (a, b, c))
    assert np.linalg.det(crystal.A) > 0


def test_blocks_average_to_the_crystal() -> None:
    rng = np.random.default_rng(1)
    crystal = draw_crystal(CrystalSettings(mosaicity=0.2), 100.0, 0.5, rng)
    blocks = draw_blocks(crystal, BeamSettings(), 1.3, 60, 0.0, rng)
    np.testing.assert_allclose(blocks.matrices.mean(axis=0), crystal.A, atol=2e-5 * np.abs(crystal.A).max())
    assert blocks.wavelengths.mean() == pytest.approx(1.3, rel=1e-6)
    fwhm = 2.3548 * blocks.wavelengths.std() / 1.3
    assert fwhm == pytest.approx(0.002, rel=0.06)
