"""Detection efficiency and false spots of every method on frames of known spots."""

from __future__ import annotations

import numpy as np
import pytest

from tests.algorithms.spotfinding.frames import expected, frame_of, grid
from xfelproc.algorithms.spotfinding import FindSpots

METHODS = ("block_background", "dispersion", "dispersion_extended", "radial_profile")


@pytest.mark.parametrize("method", METHODS)
def test_found_and_false(method: str) -> None:
    rng = np.random.default_rng(12)
    find = FindSpots.model_validate({"method": method})
    efficiency = []
    for photons in (25.0, 50.0, 100.0, 200.0):
        truth = grid(700, 700, photons, rng)
        spots = find.find(frame_of(rng.poisson(expected((700, 700), 2.0, truth)).astype(np.uint16)))
        distance = np.linalg.norm(np.column_stack([spots["fast"], spots["slow"]])[:, None] - truth[None, :, :2], axis=2)
        efficiency.append(len(np.unique(distance.argmin(axis=1)[distance.min(axis=1) < 1.5])) / len(truth))
        assert np.count_nonzero(distance.min(axis=1) > 3.0) <= 2
    assert efficiency == sorted(efficiency)
    assert efficiency[2] > 0.97
    assert efficiency[3] > 0.995
    assert efficiency[1] > 0.4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("background", [0.02, 0.3, 3.0, 100.0])
def test_blank_frames_stay_blank(method: str, background: float) -> None:
    pixels = np.random.default_rng(13).poisson(background, (1000, 1000)).astype(np.uint16)
    assert len(FindSpots.model_validate({"method": method}).find(frame_of(pixels))) <= 2
