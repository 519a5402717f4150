"""Partiality, its derivatives, and the refinement of lattices, against finite differences and plain numpy."""

import gemmi
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.spatial.transform import Rotation
from scipy.special import erfcx, log_ndtr

from xfelproc.algorithms.merging.strains import strain_shapes
from xfelproc.geometry.cells import b_matrix
from xfelproc.kernels import lattice_equations, partiality, postrefinement, reference_sums, wilson_models
from xfelproc.kernels.scaling import wilson_log_likelihood

KINDS = [partiality.GAUSSIAN, partiality.LORENTZIAN, partiality.OVERLAP]
ERRORS = np.array([1.0, 1e-3, 1e-4, 0.0, 0.0])


def typical(n, intensity):
    """Return what `Means` says of a resolution, and Wilson's law."""
    mean = np.full(n, intensity)
    return mean, mean, mean**-2.0, np.zeros(n, dtype=bool)


def difference(function, x, step):
    return (function(x + step) - function(x - step)) / (2 * step)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("half", [0.0, 1e-4, 9e-4, 3e-3])
@pytest.mark.parametrize("excitation", [0.0, 2e-4, -5e-4, 1.1e-3])
def test_derivatives_of_the_factors(kind, half, excitation):
    w0, w1, s2 = 4e-4, 5e-4, 0.2
    log_w0, log_w1 = np.log(w0), np.log(w1)

    def value(e=excitation, a=log_w0, b=log_w1):
        v, p = partiality.factors(kind, 1.0, e, np.exp(a), np.exp(b), s2, half)
        return v * p

    w2 = partiality.squared_width(kind, w0, w1, s2, half)
    v, p = partiality.factors(kind, 1.0, excitation, w0, w1, s2, half)
    with_e, with_w = partiality.profile_slopes(kind, excitation, np.sqrt(w2), half, p)
    with_e, with_w0, with_w1 = v * with_e, v * (with_w - p) * w0**2 / w2 + v * p, v * (with_w - p) * w1**2 * s2 / w2
    assert with_e == pytest.approx(difference(lambda e: value(e=e), excitation, 1e-9), rel=1e-4, abs=1e-3)
    assert with_w0 == pytest.approx(difference(lambda a: value(a=a), log_w0, 1e-6), rel=1e-4, abs=1e-7)
    assert with_w1 == pytest.approx(difference(lambda b: value(b=b), log_w1, 1e-6), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("half", [2e-4, 2e-3])
def test_overlap_is_the_part_of_a_ball_between_two_planes(half):
    w = 4e-4
    r = np.sqrt(5.0) * w

    def slab(excitation):
        low, high = max(excitation - half, -r), min(excitation + half, r)
        return quad(lambda x: r * r - x * x, low, high)[0] if high > low else 0.0

    for excitation in (0.0, 3e-4, 8e-4, -1e-3, 4e-3):
        expected = slab(excitation) / slab(0.0)
        assert partiality.profile(partiality.OVERLAP, excitation, w, half) == pytest.approx(expected, abs=1e-9)


def lattice(seed=1, n=300, strains=0):
    rng = np.random.default_rng(seed)
    group = gemmi.SpaceGroup("P 43 21 2")
    a = Rotation.random(random_state=rng).as_matrix() @ b_matrix((79.1, 79.1, 38.0, 90.0, 90.0, 90.0))
    hkl = rng.integers(-25, 26, size=(60 * n, 3)).astype(np.int16)
    wavelength = 1.3

    def excitations(matrix):
        return np.linalg.norm(hkl @ matrix.T + np.array([0, 0, -1 / wavelength]), axis=1) - 1 / wavelength

    near = np.flatnonzero(np.abs(excitations(a)) < 1.5e-3)[:n]
    hkl = np.ascontiguousarray(hkl[near])
    return a, hkl, wavelength, strain_shapes(group)[:strains], rng


def test_derivatives_of_the_excitation_error():
    a, hkl, wavelength, _, _ = lattice()
    starts = np.array([0, len(hkl)])
    for name in ("P 43 21 2", "P 1 21 1", "P 1", "P 63"):
        shapes = strain_shapes(gemmi.SpaceGroup(name))
        found = partiality.block_derivatives(starts, hkl, a[None], np.array([wavelength]), shapes)

        def at(parameters, shapes=shapes):
            rotation = Rotation.from_rotvec([parameters[0], parameters[1], 0.0]).as_matrix()
            strain = np.eye(3) + np.tensordot(parameters[2:], shapes, axes=1)
            q = hkl @ (rotation @ a @ strain).T
            return np.linalg.norm(q + np.array([0, 0, -1 / wavelength]), axis=1)

        for i in range(found.shape[1]):
            step = np.zeros(found.shape[1])
            step[i] = 1e-6
            np.testing.assert_allclose(found[:, i], (at(step) - at(-step)) / 2e-6, rtol=1e-4, atol=1e-5, err_msg=f"{name} {i}")


def problem(kind, strains=2):
    a, hkl, wavelength, shapes, rng = lattice(strains=strains)
    n = len(hkl)
    q = hkl @ a.T
    s2 = np.sum(q**2, axis=1)
    excitation = np.linalg.norm(q + np.array([0, 0, -1 / wavelength]), axis=1) - 1 / wavelength
    truth = np.array([0.4, 3.0, 8e-5, -5e-5, np.log(4e-4), np.log(5e-4), 4e-4, -3e-4][: 6 + strains])
    full_intensity = 2000.0 * rng.exponential(size=n)
    starts = np.array([0, n])
    observed = partiality.Observed(
        np.arange(n, dtype=np.int32),
        np.zeros(n, dtype=np.float32),
        np.full(n, 60.0, dtype=np.float32),
        np.ones(n, dtype=np.float32),
        excitation.astype(np.float32),
        partiality.block_derivatives(starts, hkl, a[None], np.array([wavelength]), shapes),
        np.ones(n, dtype=np.float32),
    )
    shift = np.array([0.25 * 0.002 * wavelength])
    full, part = partiality.block_factors(starts, observed, s2, shift, truth[None], kind)
    expected = full.astype(float) * part * full_intensity
    counts = rng.normal(expected, np.sqrt(60.0 + expected)).astype(np.float32)
    return observed._replace(intensity=counts), s2, full_intensity, shift, truth, starts


@pytest.mark.parametrize("kind", KINDS)
def test_normal_equations_have_the_gradient_of_the_target(kind):
    observed, s2, intensity, shift, truth, _ = problem(kind)
    n, robust = len(intensity), 3.0
    compared = reference_sums.Compared(s2.astype(np.float32), intensity, np.full(n, np.inf), np.full(n, 500.0))
    prior, precision = truth + 0.01, np.full(len(truth), 2.0)
    p = truth + np.array([0.02, 0.5, 1e-5, 1e-5, 0.05, -0.05, 1e-5, 1e-5])

    def target(x):
        full, part = np.empty(n), np.empty(n)
        partiality.lattice_factors(observed, compared.inverse_d2, shift[0], x, kind, full, part)
        return lattice_equations.target(observed, compared, full, part, x, prior, precision, robust)

    normal, right = np.zeros((len(p), len(p))), np.zeros(len(p))
    full, part = np.empty(n), np.empty(n)
    partiality.lattice_factors(observed, compared.inverse_d2, shift[0], p, kind, full, part)
    value = lattice_equations.equations(
        observed,
        compared,
        shift[0],
        p,
        prior,
        precision,
        kind,
        robust,
        np.ones(len(p), dtype=bool),
        full,
        part,
        np.empty((len(p), n)),
        normal,
        right,
    )
    assert value == pytest.approx(target(p), rel=1e-4)
    for i, step in enumerate([1e-3, 1e-2, 1e-6, 1e-6, 1e-3, 1e-3, 1e-6, 1e-6]):
        x = np.zeros(len(p))
        x[i] = step
        assert right[i] == pytest.approx(-(target(p + x) - target(p - x)) / (2 * step), rel=0.02, abs=0.01 * np.sqrt(normal[i, i]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_lattice_is_refined_to_its_truth(kind):
    observed, s2, intensity, shift, truth, starts = problem(kind)
    n, size = len(intensity), len(truth)
    means = reference_sums.Means(intensity, np.full(n, 1e6), np.ones(n), intensity, np.full(n, -36.0), s2, *typical(n, 2000.0))
    precision = 1 / np.array([0.5, 10.0, 3e-4, 3e-4, 0.5, 0.5, 2e-3, 2e-3]) ** 2
    begin = np.array([[0.0, 0.0, 0.0, 0.0, np.log(4.6e-4), np.log(4e-4), 0.0, 0.0]])
    priors = postrefinement.Priors(begin.copy(), precision, np.ones(size, dtype=bool))
    found, _, _, cc, n_used, quality = postrefinement.refine_block(
        starts,
        observed,
        np.ones(1, dtype=bool),
        np.ones(1),
        shift,
        means,
        False,
        begin,
        priors,
        ERRORS,
        ERRORS,
        0.05,
        kind,
        3.0,
        20,
    )
    assert found[0, 0] == pytest.approx(truth[0], abs=0.06)
    np.testing.assert_allclose(found[0, 2:4], truth[2:4], atol=4e-5)  # counting allows 1.5e-5
    np.testing.assert_allclose(found[0, 6:], truth[6:], atol=3e-4)
    assert cc[0] > 0.97
    assert n_used[0] > 50
    assert quality[0] < 3.0


def test_a_lattice_is_compared_to_the_others_alone():
    n = 5
    observed = partiality.Observed(
        np.arange(n, dtype=np.int32),
        np.array([10.0, 20.0, 30.0, 40.0, 50.0], dtype=np.float32),
        np.full(n, 4.0, dtype=np.float32),
        np.zeros(n, dtype=np.float32),
        np.zeros(n, dtype=np.float32),
        np.zeros((n, 2), dtype=np.float32),
        np.ones(n, dtype=np.float32),
    )
    full, part = np.full(n, 2.0, dtype=np.float32), np.full(n, 0.5, dtype=np.float32)
    rest_mean, rest_weight = np.array([7.0, 8.0, 9.0, 10.0, 0.0]), np.array([0.5, 1.0, 2.0, 3.0, 0.0])
    own = 1.0 / 4.0
    weight = rest_weight + own
    mean = (rest_weight * rest_mean + own * observed.intensity) / weight
    errors = np.array([1.0, 0.0, 0.0, 0.0, 0.0])
    means = reference_sums.Means(mean, weight, np.ones(n), mean, np.full(n, -36.0), np.zeros(n), *typical(n, 10.0))
    compared = reference_sums.Compared(np.zeros(n, dtype=np.float32), np.zeros(n), np.zeros(n), np.zeros(n))
    share = reference_sums.others(observed, full, part, means, errors, 1.0, 0.05, True, compared)
    # by Wilson's law the intensity is 10 ± 10 before anything is measured
    wilson = np.where(rest_weight > 0, 0.01, 0.0)
    shrunken = np.divide(rest_weight * rest_mean + wilson * 10.0, rest_weight + wilson, out=np.zeros(n), where=rest_weight > 0)
    np.testing.assert_allclose(compared.mean, shrunken, atol=1e-9)
    np.testing.assert_allclose(compared.weight, rest_weight + wilson, atol=1e-12)
    assert share == pytest.approx(np.mean(own / weight))


def wilson_term(intensity, sigma, mu):
    a, b, _ = wilson_models.wilson_parts(intensity, sigma, mu)
    return a - np.log(b)


def test_wilsons_likelihood_is_that_of_the_convolution():
    for intensity, sigma, mu in ((50.0, 10.0, 40.0), (-20.0, 10.0, 3.0), (5.0, 30.0, 100.0), (0.0, 1.0, 300.0), (60.0, 1.0, 5.0)):
        expected = wilson_log_likelihood(np.array([intensity]), np.array([sigma]), np.array([mu]))
        assert -wilson_term(intensity, sigma, mu) == pytest.approx(expected, abs=1e-7)


def test_complementary_error_function():
    x = np.concatenate([np.linspace(-9.0, 9.0, 181), [40.0, 1e3, 1e5]])
    parts = np.array([wilson_models.erfc_parts(v) for v in x])
    found = np.log(parts[:, 1]) + parts[:, 0] - np.where(x > 0, x**2, 0.0)
    np.testing.assert_allclose(found, np.log(2.0) + log_ndtr(-x * np.sqrt(2.0)), rtol=2e-8, atol=2e-8)
    np.testing.assert_allclose(parts[:, 2], np.where(x < -6.0, 0.0, 1.0 / erfcx(x)), rtol=2e-8, atol=1e-15)


def test_slope_of_wilsons_likelihood():
    for intensity, sigma, mu in ((50.0, 10.0, 40.0), (-20.0, 10.0, 3.0), (5.0, 30.0, 100.0), (900.0, 5.0, 20.0), (0.0, 1.0, 300.0)):
        capped = intensity > wilson_models.LIKELY * mu + 6 * sigma
        slope = wilson_models.wilson_parts(intensity, sigma, mu)[2]
        expected = -difference(lambda m, i=intensity, s=sigma: wilson_term(i, s, m), mu, 1e-4 * mu)
        if not capped:
            assert slope == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_widths_and_scales_are_found_without_any_reference():
    observed, s2, _, shift, truth, starts = problem(partiality.GAUSSIAN, strains=0)
    n = len(s2)
    begin = np.array([[0.0, 0.0, 0.0, 0.0, np.log(6e-4), np.log(5e-4)]])
    free = np.array([True, False, False, False, True, True])
    precision = 1 / np.array([3.0, 1.0, 1.0, 1.0, 0.5, 0.5]) ** 2
    priors = postrefinement.Priors(begin.copy(), precision, free)
    typical = np.full(n, 2000.0) * np.exp(-0.5 * truth[1] * s2)
    found = wilson_models.fit_block(starts, observed, s2, typical, shift, begin, priors, partiality.GAUSSIAN, 12)
    width, true_width = (np.sqrt(np.exp(2 * p[4]) + 0.2 * np.exp(2 * p[5])) for p in (found[0], truth))
    assert width == pytest.approx(true_width, rel=0.1)
    assert found[0, 0] == pytest.approx(truth[0], abs=0.25)
