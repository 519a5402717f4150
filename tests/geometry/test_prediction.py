from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from xfelproc.geometry.cells import b_matrix, rotation_matrix
from xfelproc.geometry.detector import pixel_to_q, polarization_factor, ray_to_pixel
from xfelproc.geometry.prediction import envelope_of, pack_detector, predict_indices, predict_still
from xfelproc.kernels.geometry import find_panel, panel_grid, spots_to_q
from xfelproc.kernels.prediction import excitation_limit
from xfelproc.models.experiment import Beam, Crystal, Detector, Panel, as_matrix, as_vector


def flat(n: int = 900) -> Detector:
    return Detector((Panel("p", (1, 0, 0), (0, -1, 0), (-45.0, 40.0, -80.0), (0.1, 0.1), (n, n), thickness=0.5, mu=3.9),))


def tiled() -> Detector:
    """Tilted tiles with gaps and overlaps, one of them beside the sample and one behind it."""
    panels = []
    rng = np.random.default_rng(3)
    for i, j in product(range(4), range(4)):
        turn = rotation_matrix(0.05 * rng.normal(size=3))
        origin = (-48 + 24.0 * i, 48 - 23.0 * j, -80 + rng.normal())
        panels.append(
            Panel(f"{i}{j}", as_vector(turn[0]), as_vector(-turn[1]), origin, (0.1, 0.12), (240, 190), thickness=0.5, mu=3.9)
        )
    panels.append(Panel("side", (0, 0, 1), (0, -1, 0), (60.0, 20.0, -30.0), (0.2, 0.2), (200, 200)))
    panels.append(Panel("back", (-1, 0, 0), (0, -1, 0), (50.0, 50.0, 70.0), (0.5, 0.5), (200, 200)))
    return Detector(tuple(panels))


CRYSTAL = Crystal(as_matrix(rotation_matrix([0.4, -1.1, 0.7]) @ b_matrix((31, 45, 52, 90, 105, 90))), "C 1 2 1", 400.0, 0.2)


@pytest.mark.parametrize("detector", [flat(), tiled()], ids=["flat", "tiled"])
@pytest.mark.parametrize("direction", [(0.0, 0.0, 1.0), (0.02, -0.03, 0.9993)])
def test_against_all_indices(detector: Detector, direction: tuple[float, float, float]) -> None:
    beam = Beam(1.3, as_vector(np.array(direction) / np.linalg.norm(direction)), polarization_fraction=0.9)
    d_min, margin = 1.6, 1.3
    found = predict_still(CRYSTAL, detector, beam, d_min, margin)
    span = range(-35, 36)
    hkl = np.array(list(product(span, span, span)))
    hkl = hkl[np.any(hkl != 0, axis=1) & ((hkl[:, 0] + hkl[:, 1]) % 2 == 0)]
    q = hkl @ CRYSTAL.a_matrix.T
    length = np.linalg.norm(q, axis=1)
    s1 = q + beam.s0
    excitation = np.linalg.norm(s1, axis=1) - 1 / beam.wavelength
    sine = np.minimum(beam.wavelength * length / 2, 1.0)
    limit = margin * np.sqrt(1 - sine**2) * length * (1 / (CRYSTAL.domain_size * length) + np.radians(CRYSTAL.half_mosaicity))
    near = (length <= 1 / d_min) & (np.abs(excitation) <= limit)
    panel, position = ray_to_pixel(detector, s1[near])
    on = panel >= 0
    expected = {tuple(h): (p, *xy) for h, p, xy in zip(hkl[near][on], panel[on], position[on], strict=True)}
    assert len(expected) > 150
    assert {tuple(h) for h in found["hkl"]} == set(expected)
    for row in range(len(found)):
        p, x, y = expected[tuple(found["hkl"][row])]
        assert (found["panel"][row], found["fast"][row], found["slow"][row]) == pytest.approx((p, x, y), abs=1e-6)
    q = found["hkl"] @ CRYSTAL.a_matrix.T
    s1 = q + beam.s0
    assert found["d"] == pytest.approx(1 / np.linalg.norm(q, axis=1), rel=1e-5)
    assert found["excitation"] == pytest.approx(np.linalg.norm(s1, axis=1) - 1 / beam.wavelength, abs=1e-8)
    assert found["polarization"] == pytest.approx(polarization_factor(beam, s1), abs=1e-5)
    assert np.all(found["partiality"] <= 1)
    assert found["partiality"].min() == pytest.approx(np.exp(-1.5 * margin**2), rel=0.2)


def test_psi_turns_the_point_on_the_sphere() -> None:
    beam = Beam(1.1)
    found = predict_still(CRYSTAL, flat(), beam, 1.8)
    for h, psi, excitation in zip(found["hkl"], np.radians(found["delta_psi"]), found["excitation"], strict=True):
        q = CRYSTAL.a_matrix @ h
        axis = np.cross(q, beam.s0)
        turned = rotation_matrix(psi * axis / np.linalg.norm(axis)) @ q
        back = rotation_matrix(-psi * axis / np.linalg.norm(axis)) @ q
        misses = [abs(np.linalg.norm(beam.s0 + v) - 1 / beam.wavelength) for v in (turned, back)]
        assert min(misses) < 2e-8
        assert np.sign(psi) == np.sign(excitation)
        cosine = np.sqrt(1 - (beam.wavelength * np.linalg.norm(q) / 2) ** 2)
        assert excitation == pytest.approx(np.linalg.norm(q) * cosine * psi, rel=0.05)


def test_given_indices() -> None:
    beam = Beam(1.3, bandwidth=0.005)
    found = predict_still(CRYSTAL, tiled(), beam, 1.8)
    again = predict_indices(CRYSTAL, tiled(), beam, found["hkl"], found["panel"])
    assert again[:, 0] == pytest.approx(found["fast"], abs=1e-9)
    assert again[:, 1] == pytest.approx(found["slow"], abs=1e-9)
    assert again[:, 3] == pytest.approx(found["delta_psi"], abs=1e-5)


def test_spectrum_draws_the_ray_along_the_radius() -> None:
    """With a wide spectrum and no spread of the point, the wavelength that fits it diffracts: s1 = q + s0 λ0/λ."""
    crystal = Crystal(CRYSTAL.A, CRYSTAL.space_group, 1e6, 0.001)
    beam = Beam(1.3, bandwidth=0.02)
    found = predict_still(crystal, flat(), beam, 2.0)
    q = found["hkl"] @ crystal.a_matrix.T
    scale = -0.5 * np.sum(q * q, axis=1) / (q @ beam.s0)
    _, position = ray_to_pixel(flat(), q + scale[:, None] * beam.s0)
    monochromatic = predict_still(crystal, flat(), Beam(1.3), 2.0, 100.0)
    error = np.hypot(*(position - np.column_stack([found["fast"], found["slow"]])).T)
    assert len(found) > 20
    assert np.percentile(error, 90) < 0.05
    by_index = {
        tuple(h): (x, y) for h, x, y in zip(monochromatic["hkl"], monochromatic["fast"], monochromatic["slow"], strict=True)
    }
    moved = [np.hypot(*(p - by_index[tuple(h)])) for h, p in zip(found["hkl"], position, strict=True) if tuple(h) in by_index]
    assert np.percentile(moved, 90) > 0.5


def test_panel_lookup_and_q() -> None:
    detector = tiled()
    beam = Beam(1.3, as_vector(np.array([0.02, -0.03, 1.0]) / np.linalg.norm([0.02, -0.03, 1.0])))
    rays = np.random.default_rng(0).normal(size=(3000, 3))
    packed = pack_detector(detector)
    grid = panel_grid(packed, beam.s0)
    panel, position = ray_to_pixel(detector, rays)
    found = np.array([find_panel(packed, *grid, *ray) for ray in rays])
    assert np.array_equal(found[:, 0], panel)
    on = panel >= 0
    assert set(panel[on]) >= {16, 17}
    assert np.allclose(found[on, 1:], position[on], atol=1e-9)
    q = np.empty((on.sum(), 3))
    x, y = np.ascontiguousarray(position[on].T)
    spots_to_q(packed, panel[on].astype(np.int32), x, y, beam.s0, q)
    assert np.allclose(q, pixel_to_q(detector, beam, panel[on], x, y), atol=1e-9)


def test_envelope() -> None:
    beam = Beam(1.0, bandwidth=0.01)
    limit = excitation_limit(0.5, 1.0, envelope_of(CRYSTAL, beam, 2.0))
    theta = np.arcsin(0.25)
    psi = 2.0 / CRYSTAL.domain_size + np.radians(CRYSTAL.half_mosaicity) + 0.005 * np.tan(theta)
    assert limit == pytest.approx(2.0 * 0.5 * np.cos(theta) * psi)
