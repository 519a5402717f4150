from __future__ import annotations

import numpy as np
import pytest

from xfelproc.geometry.cells import rotation_matrix
from xfelproc.geometry.prediction import pack_detector
from xfelproc.kernels.footprint import fit_footprint, peak_regions, spot_covariance, variance_bases
from xfelproc.kernels.geometry import pixel_to_ray, ray_to_panel
from xfelproc.kernels.integration import integrate_still
from xfelproc.models.conventions import ReflectionFlag
from xfelproc.models.experiment import Detector, Panel, as_vector

SIZE = 640
BEAM = np.array([0.0, 0.0, -1.0])
RADII = np.array([2.0, 4.0, 7.5, 8.0])
THETA = np.array([0.4, 1.2e-6, 8e-8, 4e-7])


def detector(tilt: tuple[float, float, float]) -> Detector:
    """Return a panel whose far corner is at 2θ = 43°, turned by a rotation vector (degrees) about the beam's foot."""
    turn = rotation_matrix(np.radians(tilt))
    fast, slow = turn @ [1.0, 0.0, 0.0], turn @ [0.0, -1.0, 0.0]
    origin = np.array([0.0, 0.0, -73.0]) - 0.075 * 20 * (fast + slow)
    return Detector((Panel("one", as_vector(fast), as_vector(slow), as_vector(origin), (0.075, 0.075), (SIZE, SIZE)),))


def spots(packed: np.ndarray, theta: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a noise-free image of Gaussian spots on a tilted background, their places and photons."""
    rng = np.random.default_rng(seed)
    grid = np.arange(24, SIZE - 24, 32)
    places = np.column_stack([v.ravel() for v in np.meshgrid(grid, grid)]) + rng.uniform(0, 1, (len(grid) ** 2, 2))
    photons = rng.uniform(500, 5000, len(places))
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    image = 3.0 + 0.002 * x - 0.001 * y
    step = (np.arange(3) - 1.0) / 3.0
    for (cx, cy), n in zip(places, photons, strict=True):
        xx, xy, yy = covariance(packed, theta, cx, cy)
        inverse = np.linalg.inv([[xx, xy], [xy, yy]])
        i, j = int(cx) - 14, int(cy) - 14
        part = np.s_[max(j, 0) : j + 29, max(i, 0) : i + 29]
        dx, dy = (v[part][..., None, None] - c for v, c in ((x, cx), (y, cy)))
        dx, dy = dx + step[:, None], dy + step
        form = inverse[0, 0] * dx**2 + 2 * inverse[0, 1] * dx * dy + inverse[1, 1] * dy**2
        image[part] += n * np.sqrt(np.linalg.det(inverse)) / (2 * np.pi) * np.exp(-0.5 * form).mean(axis=(2, 3))
    return image, places, photons


def covariance(packed: np.ndarray, theta: np.ndarray, fast: float, slow: float) -> tuple[float, float, float]:
    bases = np.empty((4, 3))
    variance_bases(packed[0], BEAM, fast, slow, bases)
    return spot_covariance(theta, bases)


def fitted(packed: np.ndarray, image: np.ndarray, places: np.ndarray, photons: np.ndarray) -> tuple[np.ndarray, int]:
    return fit_footprint(
        image[None],
        np.zeros((1, SIZE, SIZE), dtype=np.uint8),
        np.array([[-0.5, 6e4]]),
        np.array([[SIZE, SIZE]]),
        packed,
        BEAM,
        np.zeros(len(places), dtype=np.int32),
        places,
        np.sqrt(photons),
        np.array([0.4, 3e-7, 3e-7, 1e-7]),
        np.array([0.4, 1e-6, 1e-6, 1e-6]),
    )


@pytest.mark.parametrize("tilt", [(0.0, 0.0, 0.0), (10.0, -15.0, 30.0)])
def test_bases_are_how_rays_move_on_the_panel(tilt: tuple[float, float, float]) -> None:
    packed = pack_detector(detector(tilt))
    for fast, slow in ((60.0, 500.0), (600.0, 600.0), (20.0, 30.0)):
        u = np.array(pixel_to_ray(packed[0], fast, slow))
        across = np.cross(BEAM, u) / np.linalg.norm(np.cross(BEAM, u))
        inside = np.cross(across, u)
        jacobian = np.empty((2, 2))
        for column, way in enumerate((across, inside)):
            ends = [np.array(ray_to_panel(packed[0], *(u + sign * 1e-5 * way))[1:]) for sign in (1, -1)]
            jacobian[:, column] = (ends[0] - ends[1]) / 2e-5
        theta = 0.5 * np.arccos(u @ BEAM)
        q = 2 * np.sin(theta)
        bases = np.empty((4, 3))
        variance_bases(packed[0], BEAM, fast, slow, bases)
        wanted = (np.eye(2), q**2 * np.diag([1, np.sin(theta) ** 2]), np.diag([0, 4 * np.tan(theta) ** 2]))
        expected = [np.eye(2), *(jacobian @ spread @ jacobian.T for spread in wanted)]
        for k in range(4):
            assert bases[k] == pytest.approx(np.array(expected[k])[[0, 0, 1], [0, 1, 1]], rel=1e-4, abs=1e-3), k


@pytest.mark.parametrize("tilt", [(0.0, 0.0, 0.0), (10.0, -15.0, 30.0)])
@pytest.mark.parametrize("theta", [THETA, np.array([0.3, 5e-7, 0.0, 9e-7]), np.array([0.35, 4e-7, 1e-6, 0.0])])
def test_a_spot_at_any_angle_keeps_its_photons(tilt: tuple[float, float, float], theta: np.ndarray) -> None:
    packed = pack_detector(detector(tilt))
    image, places, photons = spots(packed, theta)
    some = np.arange(0, len(places), 6)
    found, used = fitted(packed, image, places[some], photons[some])
    assert used > 0.8 * len(some)
    shapes = np.array([[covariance(packed, t, *place) for place in places] for t in (theta, found)])
    wider = shapes[0] + [1 / 12, 0, 1 / 12]  # by the pixels
    assert np.all(np.abs(shapes[1] - wider) < 0.04 * wider.max(axis=1, keepdims=True))
    n = len(places)
    panel, fast, slow = np.zeros(n, dtype=np.int32), places[:, 0].copy(), places[:, 1].copy()
    for widths in (2.0, 2.5, 3.0):
        regions, out, flags = np.empty((n, 7)), np.zeros((n, 5)), np.zeros(n, dtype=np.uint16)
        peak_regions(packed, BEAM, panel, fast, slow, found, widths, RADII, regions)
        mask, sizes = np.zeros((1, SIZE, SIZE), dtype=np.uint8), np.array([[SIZE, SIZE]])
        integrate_still(image[None], mask, np.array([[-0.5, 6e4]]), sizes, panel, fast, slow, regions, 4.0, 30, out, flags)
        good = flags & ReflectionFlag.INTEGRATED > 0
        assert good.mean() > 0.9
        ratio = (out[:, 0] / photons)[good]
        angle = np.hypot(fast, slow)[good]
        assert np.abs(ratio - 1).max() < 0.02  # pixels at the rim are in or out
        for part in np.array_split(np.argsort(angle), 5):
            assert np.mean(ratio[part]) == pytest.approx(1.0, abs=0.01 if widths > 2 else 0.015)


def test_regions_have_bounds() -> None:
    packed = pack_detector(detector((0.0, 0.0, 0.0)))
    fast, slow = np.array([25.0, 600.0]), np.array([28.0, 610.0])
    for theta, radius in ((np.zeros(4), 2.0), (np.array([100.0, 0, 0, 0]), 8.0)):
        regions = np.empty((2, 7))
        peak_regions(packed, BEAM, np.zeros(2, dtype=np.int32), fast, slow, theta, 2.5, RADII, regions)
        assert regions[:, :3] == pytest.approx(np.tile([1.0, 0.0, 1.0], (2, 1)))
        assert regions[:, 3] == pytest.approx([radius, radius])
        assert regions[:, 4] == pytest.approx(regions[:, 3] + 2.0)
        assert regions[:, 5] ** 2 - regions[:, 4] ** 2 == pytest.approx([7.5**2 - 16.0] * 2)


def test_without_spots_the_expected_shape_stays() -> None:
    packed = pack_detector(detector((0.0, 0.0, 0.0)))
    image, places, photons = np.full((SIZE, SIZE), 3.0), np.array([[1.0, 1.0]]), np.array([1000.0])
    theta, used = fitted(packed, image, places, photons)
    assert used == 0
    assert theta == pytest.approx([0.4, 3e-7, 3e-7, 1e-7], rel=1e-3)
