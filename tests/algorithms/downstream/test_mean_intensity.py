from __future__ import annotations

import numpy as np
import pytest

from tests.algorithms.downstream.wilson_data import simulated
from xfelproc.algorithms.downstream.anisotropy import anisotropy
from xfelproc.algorithms.downstream.mean_intensity import allowed_tensors, fit_mean, reflections_of
from xfelproc.geometry.miller import find_space_group

MONOCLINIC = (50, 60, 55, 90, 105, 90)


@pytest.mark.parametrize(
    ("symbol", "cell", "n"),
    [
        ("P 1", (30, 35, 40, 80, 85, 95), 5),
        ("P 1 21 1", MONOCLINIC, 3),
        ("P 21 21 21", (50, 60, 70, 90, 90, 90), 2),
        ("P 43 21 2", (79, 79, 38, 90, 90, 90), 1),
        ("P 61 2 2", (93, 93, 130, 90, 90, 120), 1),
        ("P 2 3", (60, 60, 60, 90, 90, 90), 0),
    ],
)
def test_number_of_anisotropic_terms_is_that_of_the_crystal_system(symbol: str, cell: tuple[float, ...], n: int) -> None:
    tensors = allowed_tensors(cell, find_space_group(symbol))
    assert tensors.shape == (n, 3, 3)
    np.testing.assert_allclose(np.trace(tensors, axis1=1, axis2=2), 0.0, atol=1e-12)
    np.testing.assert_allclose(np.einsum("kij,lij->kl", tensors, tensors), np.eye(n), atol=1e-12)


def test_tensor_is_the_true_one_within_its_error() -> None:
    truth = np.array([[5.0, 0.0, 3.0], [0.0, -8.0, 0.0], [3.0, 0.0, 3.0]])
    errors = []
    for seed in range(4):
        data = simulated(MONOCLINIC, "P 1 21 1", d_min=2.4, delta_b=truth, noise=0.05, seed=seed)
        reflections, _ = reflections_of(data.merged["hkl"], data.merged["intensity"], data.merged["sigma"], data.cell, data.group)
        mean = fit_mean(reflections, allowed_tensors(data.cell, data.group))
        assert mean is not None
        assert mean.converged
        assert mean.anisotropy_chi2 > 100
        used = mean.delta_b_sigma > 1e-6
        np.testing.assert_allclose(mean.delta_b[~used], 0.0, atol=1e-9)
        errors.append((mean.delta_b - truth)[used] / mean.delta_b_sigma[used])
        assert np.max(mean.delta_b_sigma) < 1.0
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(1.0, abs=0.5)


def test_mean_is_the_true_one_and_isotropic_data_have_no_tensor() -> None:
    data = simulated((79.1, 79.1, 38, 90, 90, 90), "P 43 21 2", d_min=2.2, noise=0.2)
    reflections, _ = reflections_of(data.merged["hkl"], data.merged["intensity"], data.merged["sigma"], data.cell, data.group)
    mean = fit_mean(reflections, allowed_tensors(data.cell, data.group))
    assert mean is not None
    ratio = reflections.intensity / mean.at(reflections.q)
    for rows in np.array_split(np.argsort(reflections.s2), 6):
        assert ratio[rows].mean() == pytest.approx(1.0, abs=4.5 * np.std(ratio[rows]) / np.sqrt(len(rows)))
    assert mean.anisotropy_chi2 < 12


def test_mean_stays_positive_where_there_is_noise_alone() -> None:
    data = simulated((79.1, 79.1, 38, 90, 90, 90), "P 43 21 2", d_min=2.0, b_factor=80.0, noise=1.0)
    outer = data.merged["d"] < 2.5
    assert data.merged["intensity"][outer].mean() < 0.1 * data.merged["sigma"][outer].mean()
    reflections, _ = reflections_of(data.merged["hkl"], data.merged["intensity"], data.merged["sigma"], data.cell, data.group)
    mean = fit_mean(reflections, allowed_tensors(data.cell, data.group))
    assert mean is not None
    found = mean.at(reflections.q)
    sigma = reflections.sigma[reflections.s2 > 2.5**-2].mean()
    assert np.all(found > 0.05 * sigma)  # the mean of a hundred is known to a tenth of σ
    assert np.all(np.isfinite(found))


def test_an_impossible_intensity_has_no_say() -> None:
    data = simulated((79.1, 79.1, 38, 90, 90, 90), "P 43 21 2", d_min=2.6)
    intensity = data.merged["intensity"].copy()
    reflections, _ = reflections_of(data.merged["hkl"], intensity, data.merged["sigma"], data.cell, data.group)
    before = fit_mean(reflections)
    intensity[100] *= 1e5
    reflections, _ = reflections_of(data.merged["hkl"], intensity, data.merged["sigma"], data.cell, data.group)
    after = fit_mean(reflections)
    assert before is not None
    assert after is not None
    np.testing.assert_allclose(after.at(reflections.q), before.at(reflections.q), rtol=0.15)


def test_resolution_along_an_axis_ends_where_the_signal_does() -> None:
    """Intensities fall faster along a*: local I/σ is the mean intensity over a constant σ there."""
    delta_b = np.diag([40.0, -20.0, -20.0])
    data = simulated((60, 70, 80, 90, 90, 90), "P 21 21 21", d_min=2.0, delta_b=delta_b, relative_noise=0.0, noise=1.0)
    reflections, _ = reflections_of(data.merged["hkl"], data.merged["intensity"], data.merged["sigma"], data.cell, data.group)
    mean = fit_mean(reflections, allowed_tensors(data.cell, data.group))
    assert mean is not None
    found = anisotropy(reflections, mean, data.cell, data.group)
    assert found.significant
    assert found.range_b == pytest.approx(60.0, abs=4.0)
    axes = {axis.name: axis for axis in found.axes}
    s = np.linspace(0.05, 0.5, 1000)
    for name in ("a*", "b*"):
        axis = axes[name]
        assert axis.d_min is not None
        assert not axis.beyond
        level = np.array([float(mean.at(v * axis.direction[None])[0]) for v in s]) / data.merged["sigma"][0]
        expected = 1.0 / s[np.flatnonzero(level < 1.2)[0]]
        assert axis.d_min == pytest.approx(expected, rel=0.12)
    assert axes["a*"].d_min > 1.15 * axes["b*"].d_min  # type: ignore[operator]


def test_nothing_is_fitted_to_a_few() -> None:
    data = simulated((20, 20, 20, 90, 90, 90), "P 21 21 21", d_min=8.0)
    reflections, _ = reflections_of(data.merged["hkl"], data.merged["intensity"], data.merged["sigma"], data.cell, data.group)
    assert fit_mean(reflections) is None
