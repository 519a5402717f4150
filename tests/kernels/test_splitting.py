from __future__ import annotations

import numpy as np
import pytest

from tests.algorithms.spotfinding.frames import expected, frame_of
from xfelproc.algorithms.spotfinding import FindSpots
from xfelproc.models.conventions import SpotFlag


@pytest.mark.parametrize("angle", [0, 30, 45, 90, 120])
def test_touching_spots_are_parted(angle: float) -> None:
    rng = np.random.default_rng(3)
    step = 5.5 * np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
    truth = np.array([[50.3, 50.6, 900.0], [50.3 + step[0], 50.6 + step[1], 700.0]])
    frame = frame_of(rng.poisson(expected((100, 100), 2.0, truth, sigma=1.1)).astype(np.uint16))
    spots = FindSpots().find(frame)
    assert len(spots) == 2
    assert np.all(spots["flags"] & SpotFlag.SPLIT)
    found = np.column_stack([spots["fast"], spots["slow"]])
    assert np.linalg.norm(found[:, None] - truth[None, :, :2], axis=2).min(axis=0).max() < 0.5
    whole = FindSpots(split=False).find(frame)
    assert len(whole) == 1
    assert whole["n_pixels"][0] > spots["n_pixels"].max()


def test_single_spots_stay_whole() -> None:
    rng = np.random.default_rng(4)
    count = 0
    for sigma in (0.6, 1.0, 2.0):
        truth = np.array([[30.0 + 25 * i, 30.2, 10.0 ** (2 + 0.6 * i)] for i in range(6)])
        spots = FindSpots().find(frame_of(rng.poisson(expected((60, 190), 5.0, truth, sigma)).astype(np.uint16)))
        assert not np.any(spots["flags"] & SpotFlag.SPLIT)
        count += len(spots)
    assert count >= 16
