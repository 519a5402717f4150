"""Calibration and spot finding on 2000 x 2000 uint16 frames.

CPU time: ``pytest benchmarks/bench_spots.py --benchmark-timer=time.process_time``.
"""

from __future__ import annotations

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from tests.algorithms.spotfinding.frames import expected, frame_of
from xfelproc.algorithms.calibration import Calibrate
from xfelproc.algorithms.spotfinding import FindSpots
from xfelproc.models.frames import Frame

METHODS = ("block_background", "dispersion", "dispersion_extended", "radial_profile")


def simulated(n_spots: int) -> Frame:
    """Return a frame of 3 photons a pixel with spots of 20 to 2000 photons."""
    rng = np.random.default_rng(1)
    spots = np.column_stack([rng.uniform(20, 1980, (n_spots, 2)), 20 * 10 ** rng.uniform(0, 2, n_spots)])
    return frame_of(rng.poisson(expected((2000, 2000), 3.0, spots, 1.0)).astype(np.uint16))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n_spots", [0, 250])
def test_calibrate_and_find(benchmark: BenchmarkFixture, method: str, n_spots: int) -> None:
    frame, calibrate = simulated(n_spots), Calibrate()
    find = FindSpots.model_validate({"method": method})
    constants = calibrate.constants(frame.detector, frame.mask)
    spots = benchmark(lambda: find.find(calibrate.apply(frame, constants)))
    benchmark.extra_info["spots"] = len(spots)


@pytest.mark.parametrize("kind", ["photons", "uniform gain", "maps"])
def test_calibrate(benchmark: BenchmarkFixture, kind: str) -> None:
    frame = simulated(0)
    calibrate = Calibrate() if kind == "photons" else Calibrate(gain=5.0)
    maps = np.full(frame.pixels.shape, 5.0, dtype=np.float32)
    constants = calibrate.constants(frame.detector, frame.mask, *((maps, maps) if kind == "maps" else ()))
    benchmark(lambda: calibrate.apply(frame, constants))
