from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfelproc.geometry.cells import rotation_matrix
from xfelproc.geometry.detector import (
    mean_absorption_path,
    mm_to_pixel,
    pixel_to_lab,
    pixel_to_mm,
    pixel_to_q,
    polarization_factor,
    ray_to_pixel,
    resolution_map,
)
from xfelproc.models.experiment import Beam, Detector, Panel, as_vector


def tilted_panel(tilt: tuple[float, float, float] = (0.0, 0.0, 0.0), mu: float = 3.9, thickness: float = 0.45) -> Detector:
    r = rotation_matrix(tilt)
    panel = Panel(
        name="p",
        fast_axis=as_vector(r @ [1, 0, 0]),
        slow_axis=as_vector(r @ [0, -1, 0]),
        origin=as_vector(r @ [-80.0, 80.0, -120.0]),
        pixel_size=(0.172, 0.172),
        image_size=(900, 950),
        thickness=thickness,
        mu=mu,
    )
    return Detector((panel,))


angles = st.floats(-0.4, 0.4)


@given(st.tuples(angles, angles, angles), st.floats(0, 900), st.floats(0, 950))
def test_pixel_and_mm_are_inverse_with_parallax(tilt: tuple[float, float, float], fast: float, slow: float) -> None:
    detector = tilted_panel(tilt)
    xy = pixel_to_mm(detector, 0, fast, slow)
    assert mm_to_pixel(detector, 0, xy) == pytest.approx(np.array([[fast, slow]]), abs=1e-7)


@given(st.tuples(angles, angles, angles), st.floats(5, 895), st.floats(5, 945))
def test_ray_returns_to_its_pixel(tilt: tuple[float, float, float], fast: float, slow: float) -> None:
    detector = tilted_panel(tilt)
    lab = pixel_to_lab(detector, 0, fast, slow)
    panel, position = ray_to_pixel(detector, lab * 0.37)
    assert panel[0] == 0
    assert position == pytest.approx(np.array([[fast, slow]]), abs=1e-6)


def test_mean_absorption_path_is_that_of_sampled_photons() -> None:
    mu, thickness, cosine = 2.0, 0.3, 0.8
    depth = np.random.default_rng(1).exponential(1 / mu, 2_000_000)
    sampled = np.where(depth < thickness / cosine, depth, 0.0).mean()
    assert mean_absorption_path(np.array(mu), np.array(thickness), np.array(cosine)) == pytest.approx(sampled, rel=5e-3)


def test_parallax_moves_spots_outwards() -> None:
    with_sensor, without = tilted_panel(), tilted_panel(mu=0.0)
    ray = np.array([[60.0, 20.0, -120.0]])
    shift = ray_to_pixel(with_sensor, ray)[1] - ray_to_pixel(without, ray)[1]
    assert shift[0, 0] > 0.1
    assert shift[0, 1] < -0.03


def test_resolution_map_agrees_with_scattering_vectors() -> None:
    detector, beam = (
        tilted_panel((0.1, -0.2, 0.05), mu=0.0),
        Beam(1.1, direction=as_vector(rotation_matrix([0.01, 0.02, 0]) @ [0, 0, 1])),
    )
    d = resolution_map(detector, beam)
    fast, slow = np.array([0, 10, 899]), np.array([0, 700, 949])
    q = pixel_to_q(detector, beam, 0, fast + 0.5, slow + 0.5)
    assert d[0, slow, fast] == pytest.approx(1 / np.linalg.norm(q, axis=1), rel=1e-5)


def test_polarization_is_the_dipole_pattern() -> None:
    beam = Beam(1.0, polarization_fraction=1.0)
    along_x, along_y = np.array([1.0, 0.0, -1.0]), np.array([0.0, 1.0, -1.0])
    p = polarization_factor(beam, np.array([along_x, along_y, [0, 0, -1.0]]))
    assert p == pytest.approx([0.5, 1.0, 1.0])
