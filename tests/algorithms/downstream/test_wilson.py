from __future__ import annotations

import gemmi
import numpy as np
import pytest

from tests.algorithms.downstream.wilson_data import simulated
from xfelproc.algorithms.downstream.mean_intensity import reflections_of
from xfelproc.algorithms.downstream.wilson import wilson_plot
from xfelproc.geometry.miller import find_space_group, possible_reflections


@pytest.mark.parametrize("b_factor", [8.0, 25.0, 60.0])
def test_b_is_the_true_one_within_its_error(b_factor: float) -> None:
    errors = []
    for seed in range(6):
        data = simulated((50, 60, 70, 90, 90, 90), "P 21 21 21", d_min=2.2, b_factor=b_factor, noise=0.05, seed=seed)
        reflections, _ = reflections_of(data.merged["hkl"], data.merged["intensity"], data.merged["sigma"], data.cell, data.group)
        plot = wilson_plot(reflections)
        assert plot is not None
        errors.append((plot.b_factor - b_factor) / plot.b_sigma)
        assert plot.b_sigma < 0.5 + 0.06 * b_factor
        assert plot.d_max == pytest.approx(4.0, abs=0.05)
    assert np.sqrt(np.mean(np.square(errors))) < 2.0


def test_b_of_weak_data_is_not_biased() -> None:
    """In the outer half the mean intensity is below the noise of one measurement, and many are negative."""
    found = []
    for seed in range(4):
        data = simulated((50, 60, 70, 90, 90, 90), "P 21 21 21", d_min=2.2, b_factor=40.0, noise=0.3, seed=seed)
        reflections, _ = reflections_of(data.merged["hkl"], data.merged["intensity"], data.merged["sigma"], data.cell, data.group)
        plot = wilson_plot(reflections)
        assert plot is not None
        found.append((plot.b_factor - 40.0) / plot.b_sigma)
    assert abs(np.mean(found)) < 1.2


def test_b_of_atoms_in_a_cell() -> None:
    """Structure factors of a random protein-like structure, by gemmi: an independent way to the intensities."""
    rng, group = np.random.default_rng(1), find_space_group("P 21 21 21")
    structure = gemmi.SmallStructure()
    structure.cell, structure.spacegroup = gemmi.UnitCell(36, 40, 44, 90, 90, 90), group
    for number, element in enumerate("C" * 250 + "N" * 68 + "O" * 75 + "S" * 3 + "H" * 400):
        site = gemmi.SmallStructure.Site()
        site.label, site.element, site.fract = f"{element}{number}", gemmi.Element(element), gemmi.Fractional(*rng.random(3))
        site.u_iso, site.occ = 20.0 / (8 * np.pi**2), 1.0
        structure.add_site(site)
    hkl = possible_reflections((36, 40, 44, 90, 90, 90), group, 2.0, 30.0)
    calculator = gemmi.StructureFactorCalculatorX(structure.cell)
    structure.setup_cell_images()
    values = np.array([abs(calculator.calculate_sf_from_small_structure(structure, index)) ** 2 for index in hkl.tolist()])
    reflections, _ = reflections_of(hkl, values, 0.01 * values + 1e-6, (36, 40, 44, 90, 90, 90), group)
    plot = wilson_plot(reflections)
    assert plot is not None
    assert plot.b_factor == pytest.approx(20.0, abs=max(1.0, 3 * plot.b_sigma))


def test_too_few_reflections_have_no_plot() -> None:
    data = simulated((20, 20, 20, 90, 90, 90), "P 21 21 21", d_min=6.0)
    reflections, _ = reflections_of(data.merged["hkl"], data.merged["intensity"], data.merged["sigma"], data.cell, data.group)
    assert wilson_plot(reflections) is None


def test_data_that_end_early_are_fitted_whole() -> None:
    data = simulated((90, 100, 110, 90, 90, 90), "P 21 21 21", d_min=4.5, b_factor=50.0)
    reflections, _ = reflections_of(data.merged["hkl"], data.merged["intensity"], data.merged["sigma"], data.cell, data.group)
    plot = wilson_plot(reflections)
    assert plot is not None
    assert plot.d_max > 30
    assert plot.b_factor == pytest.approx(50.0, abs=4 * plot.b_sigma)
