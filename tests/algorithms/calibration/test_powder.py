"""Powder rings painted by formulas of their own: angle of each pixel from the true panels, Poisson counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from xfelproc.algorithms.calibration.calibrants import CALIBRANTS
from xfelproc.algorithms.calibration.powder import Powder, PowderResult
from xfelproc.errors import DataError
from xfelproc.models.experiment import Beam, Detector, Panel, as_vector

PIXEL, WAVELENGTH, DISTANCE = 0.1, 1.3, 32.0
BEAM = Beam(WAVELENGTH)
WIDTH = 1.3


def flat_detector(size: int = 360, centre: tuple[float, float] = (180.0, 180.0)) -> Detector:
    """One panel, fast to the right as seen along the beam, slow downwards."""
    origin = (-centre[0] * PIXEL, centre[1] * PIXEL, -DISTANCE)
    return Detector((Panel("p", (1.0, 0.0, 0.0), (0.0, -1.0, 0.0), origin, (PIXEL, PIXEL), (size, size)),))


def four_panels(size: int = 170) -> Detector:
    """Four panels with gaps, each turned a little."""
    rng = np.random.default_rng(1)
    panels = []
    for row in range(2):
        for column in range(2):
            turn = Rotation.from_rotvec([0.0, 0.0, np.radians(rng.uniform(-1, 1))])
            corner = np.array([(column - 1) * (size + 12) + 6.0, -((row - 1) * (size + 12) + 6.0)]) * PIXEL
            panels.append(
                Panel(
                    f"p{row}{column}",
                    as_vector(turn.apply([1.0, 0.0, 0.0])),
                    as_vector(turn.apply([0.0, -1.0, 0.0])),
                    (float(corner[0]), float(corner[1]), -DISTANCE),
                    (PIXEL, PIXEL),
                    (size, size),
                )
            )
    return Detector(tuple(panels))


def paint(
    detector: Detector,
    spacings: tuple[float, ...],
    photons: float = 5.0,
    frames: int = 20,
    seed: int = 0,
    sensor: tuple[float, float] | None = None,
) -> NDArray[np.float32]:
    """Return the mean of frames with rings on the true detector; a background that falls off with the angle."""
    rng = np.random.default_rng(seed)
    image = np.zeros(detector.stack_shape, dtype=np.float32)
    for number, panel in enumerate(detector.panels):
        fast, slow = np.meshgrid(np.arange(panel.image_size[0]) + 0.5, np.arange(panel.image_size[1]) + 0.5)
        place = (
            np.array(panel.origin)
            + fast[..., None] * PIXEL * np.array(panel.fast_axis)
            + slow[..., None] * PIXEL * np.array(panel.slow_axis)
        )
        angle = np.arctan2(np.hypot(place[..., 0], place[..., 1]), -place[..., 2])
        if sensor is not None:  # across the beam: from where a photon is recorded to where it came in
            mu, thickness = sensor
            recorded = np.tan(angle) * DISTANCE
            for _ in range(5):
                depth = thickness / np.cos(angle)
                path = 1 / mu - (depth + 1 / mu) * np.exp(-mu * depth)
                angle = np.arctan2(recorded - path * np.sin(angle), DISTANCE)
        expected = 1.0 + 6.0 * np.exp(-((angle / 0.2) ** 2))
        for d in spacings:
            ring = 2 * np.arcsin(WAVELENGTH / (2 * d)) if d > WAVELENGTH / 2 else np.inf
            expected += photons * np.exp(-0.5 * ((angle - ring) / (WIDTH * PIXEL / DISTANCE * np.cos(angle) ** 2)) ** 2)
        image[number] = rng.poisson(expected * frames) / frames
    return image


def fit(
    true: Detector, recorded: Detector, spacings: tuple[float, ...], image: NDArray[np.float32], **keys: object
) -> PowderResult:
    good = np.ones(image.shape, dtype=np.bool_)
    return Powder(**keys).fit(image, good, recorded, BEAM, spacings)  # type: ignore[arg-type]


def error(result: PowderResult, true: Detector) -> NDArray[np.float64]:
    """How far the detector found is from the true one: x, y, z of the middle of the panels, mm."""
    return np.asarray(result.detector.centre - true.centre)


@pytest.mark.parametrize("name", ["LaB6", "ice"])
def test_centre_and_distance(name: str) -> None:
    true = flat_detector(centre=(181.3, 177.8))
    image = paint(true, CALIBRANTS[name])
    recorded = true.shifted((0.9, -0.7, -1.3))
    result = fit(true, recorded, CALIBRANTS[name], image)
    off = error(result, true)
    assert np.hypot(off[0], off[1]) < 0.05 * PIXEL
    assert abs(off[2]) < 5e-4 * DISTANCE
    assert np.all(np.abs(off) < 4 * np.array(result.sigma[:3]))
    assert result.rms < 0.3
    assert len(result.rings) >= 2


def test_many_rings_of_silver_behenate() -> None:
    """Rings at equal distances: a wrong centre or distance must not take one for the next."""
    spacings = tuple(30.0 / n for n in range(1, 13))
    true = flat_detector(centre=(174.0, 190.0))
    recorded = true.shifted((-1.1, 0.8, 1.5))
    result = fit(true, recorded, spacings, paint(true, spacings))
    off = error(result, true)
    assert np.hypot(off[0], off[1]) < 0.05 * PIXEL
    assert abs(off[2]) < 1e-3 * DISTANCE


def test_panels() -> None:
    true = four_panels()
    recorded = true.shifted((0.5, 1.2, 1.4))
    result = fit(true, recorded, CALIBRANTS["LaB6"], paint(true, CALIBRANTS["LaB6"]))
    off = error(result, true)
    assert np.hypot(off[0], off[1]) < 0.05 * PIXEL
    assert abs(off[2]) < 5e-4 * DISTANCE


def test_tilt() -> None:
    true = flat_detector(size=420, centre=(210.0, 214.0)).moved((0.0, 0.0, 0.0), (0.8, -0.5))
    recorded = flat_detector(size=420, centre=(210.0, 214.0)).shifted((0.2, 0.1, 0.3))
    result = fit(true, recorded, CALIBRANTS["LaB6"], paint(true, CALIBRANTS["LaB6"], frames=50), tilt=True, window=10)
    assert np.abs(np.subtract(result.tilt, (0.8, -0.5))).max() < 0.03
    assert np.all(np.abs(np.subtract(result.tilt, (0.8, -0.5))) < 4 * np.array(result.sigma[3:]))
    assert np.abs(error(result, true)).max() < 0.03


def test_uncertainties_are_honest() -> None:
    true = flat_detector(260, (130.0, 130.0))
    pulls = []
    for seed in range(4):
        result = fit(true, true, CALIBRANTS["LaB6"], paint(true, CALIBRANTS["LaB6"], frames=3, seed=seed), search_distance=0.02)
        pulls.append(error(result, true) / np.array(result.sigma[:3]))
    rms = np.sqrt(np.mean(np.square(pulls)))
    assert 0.3 < rms < 2.0


def test_spots_do_not_pull() -> None:
    true = flat_detector(centre=(182.0, 179.0))
    image = paint(true, CALIBRANTS["ice"])
    rng = np.random.default_rng(5)
    for _ in range(150):
        x, y = rng.integers(3, 357, 2)
        image[0, y - 1 : y + 2, x - 1 : x + 2] += 40.0
    result = fit(true, true.shifted((0.3, 0.3, 1.0)), CALIBRANTS["ice"], image)
    off = error(result, true)
    assert np.hypot(off[0], off[1]) < 0.1 * PIXEL


def test_no_rings() -> None:
    true = flat_detector()
    with pytest.raises(DataError, match=r"pieces of rings|no rings"):
        fit(true, true, CALIBRANTS["ice"], paint(true, ()))


def test_a_broad_hump_is_no_ring() -> None:
    """Water scatters where ice has rings: noise on its slope must not be taken for them."""
    true = flat_detector(300, (150.0, 150.0))
    y, x = np.mgrid[:300, :300] - 149.5
    hump = 4.0 * np.exp(-(((np.hypot(x, y) - 112.0) / 30.0) ** 2)) + 1.0
    image = (np.random.default_rng(3).poisson(hump * 30) / 30).astype(np.float32)[None]
    with pytest.raises(DataError, match=r"pieces"):
        fit(true, true, CALIBRANTS["ice"], image)


def test_no_pixels() -> None:
    true = flat_detector(50, (25.0, 25.0))
    with pytest.raises(DataError, match="no usable pixel"):
        fit(true, true, CALIBRANTS["ice"], np.full((1, 50, 50), np.nan, np.float32))


def test_parallax_is_in_the_model() -> None:
    """A thick sensor records rays further out; without it in the model the detector would seem 0.7 mm farther."""
    mu, thickness = 2.0, 1.0
    thin = flat_detector()
    thick = Detector(tuple(replace(p, thickness=thickness, material="Si", mu=mu) for p in thin.panels))
    image = paint(thin, CALIBRANTS["LaB6"], sensor=(mu, thickness))
    assert abs(error(fit(thick, thick, CALIBRANTS["LaB6"], image), thick)[2]) < 5e-4 * DISTANCE
    assert abs(error(fit(thin, thin, CALIBRANTS["LaB6"], image), thin)[2]) > 0.2
