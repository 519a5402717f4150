"""Spots of real frames and of somebody else's simulation."""

from __future__ import annotations

import re
from pathlib import Path

import fabio
import h5py
import hdf5plugin  # noqa: F401  (registers the compression filters)
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from xfelproc.algorithms.calibration import Calibrate, estimate_gain
from xfelproc.algorithms.spotfinding import FindSpots
from xfelproc.io.sources import open_source
from xfelproc.models.experiment import Beam, Detector, Panel
from xfelproc.models.frames import Frame, FrameRef

pytestmark = [pytest.mark.peer, pytest.mark.slow]

WAVELENGTH = 1.305097


def predicted(a_matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (n, 2) pixels at which reflections near the Ewald sphere of `stills_nanobragg` are (frame: fast, slow, beam)."""
    grid = np.arange(-46, 47)
    hkl = np.array(np.meshgrid(grid, grid, grid[24:-24], indexing="ij")).reshape(3, -1).T
    q = hkl @ a_matrix.T
    s1 = q[(np.linalg.norm(q, axis=1) < 1 / 1.75) & np.any(hkl != 0, axis=1)] + np.array([0, 0, 1 / WAVELENGTH])
    s1 = s1[np.abs(np.linalg.norm(s1, axis=1) - 1 / WAVELENGTH) < 0.0015]
    return np.asarray(s1[:, :2] / s1[:, 2:] * 92.5 / 0.075 + [1003.2, 998.3])


def test_independent_simulation(shared_data: Path) -> None:
    """All hits are hits, no blank is; every spot is a reflection; strong centroids are right to a twentieth of a pixel."""
    panel = Panel("p", (1, 0, 0), (0, -1, 0), (-75.24, 74.8725, -92.5), (0.075, 0.075), (2000, 2000), (0, 65534))
    detector, find, calibrate = Detector((panel,)), FindSpots(), Calibrate()
    constants = calibrate.constants(detector, np.zeros((1, 2000, 2000), dtype=np.uint8))
    errors, snr, pulls = [], [], []
    folder = shared_data / "stills_nanobragg"
    with h5py.File(folder / "stills.h5") as frames, h5py.File(folder / "truth.h5") as truth:
        for i, is_hit in enumerate(truth["hit"][:]):
            pixels = frames["entry/data/data"][i][None]
            frame = Frame(FrameRef(0, i), pixels, constants.mask, detector.trusted_ranges, detector, Beam(WAVELENGTH))
            spots = find.find(calibrate.apply(frame, constants))
            assert find.judge(spots)[0] == is_hit
            if not is_hit:
                assert len(spots) <= 3
                continue
            turn = Rotation.from_rotvec(truth["mosaic_mean_rotation"][i]).as_matrix()
            places = predicted(turn @ truth["A_reciprocal"][i])
            found = np.column_stack([spots["fast"], spots["slow"]])
            distance, nearest = cKDTree(places).query(found)
            assert np.count_nonzero(distance > 2.5) <= 2
            near = distance < 2.5
            errors.append((found - places[nearest])[near])
            pulls.append(errors[-1] / np.sqrt(np.column_stack([spots["var_fast"], spots["var_slow"]])[near]))
            snr.append(spots["snr"][near])
    error, pull, ratio = np.concatenate(errors), np.concatenate(pulls), np.concatenate(snr)
    assert len(error) > 10_500
    assert np.sqrt(np.mean(error[ratio > 20] ** 2)) < 0.055
    assert np.sqrt(np.mean(error[ratio < 7] ** 2)) < 0.3
    assert 0.9 < 1.4826 * np.median(np.abs(pull)) < 1.5


@pytest.mark.parametrize(
    ("number", "fewest", "most"), [(2, 1300, 2000), (6, 1300, 2000), (10, 1100, 2000), (14, 420, 800), (17, 0, 5)]
)
def test_thaumatin(shared_data: Path, number: int, fewest: int, most: int) -> None:
    image = fabio.open(str(shared_data / "stills_thaumatin" / f"thau_3_2_{number:04d}.cbf.bz2"))
    header = image.header["_array_data.header_contents"]
    centre = re.search(r"Beam_xy \(([\d.]+), ([\d.]+)\)", header)
    assert centre is not None
    x, y = (0.172 * float(v) for v in centre.groups())
    pixels = np.ascontiguousarray(image.data[None], dtype=np.int32)
    panel = Panel("p", (1, 0, 0), (0, -1, 0), (-x, y, -351.0), (0.172, 0.172), pixels.shape[:0:-1], (0.0, 1e6))  # type: ignore[arg-type]
    detector = Detector((panel,))
    mask = (pixels < 0).astype(np.uint8)
    find = FindSpots()
    spots = find.find(Frame(FrameRef(0, 0), pixels, mask, detector.trusted_ranges, detector, Beam(0.96859)))
    assert fewest <= len(spots) <= most
    assert find.judge(spots)[0] == (number != 17)


@pytest.mark.parametrize("number", [401, 601])
def test_thermolysin(shared_data: Path, number: int) -> None:
    """ADU of an integrating detector of 64 panels, its gain told by nobody."""
    source = open_source(shared_data / "stills_thermolysin" / f"idx-20130301060858{number}.cbf")
    frame = source.read(0)
    calibrate, find = Calibrate(), FindSpots()
    photons = calibrate.apply(frame, calibrate.constants(frame.detector, source.static_mask()))
    assert 4.0 < estimate_gain(frame) < 6.0
    spots = find.find(photons)
    assert 150 <= len(spots) <= 400
    assert np.count_nonzero(spots["snr"] > 10) > 40
    assert find.judge(spots)[0]
