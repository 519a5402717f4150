"""Raw integers to photons: frames of 4.5 megapixels (9 modules of 512 x 1024), and dark frames.

CPU time: ``pytest benchmarks/bench_calibration.py --benchmark-timer=time.process_time``.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from xfelproc.algorithms.calibration import Calibrate, Darks, DarkSums, dark_means
from xfelproc.models.calibration import DetectorConstants, StageCoding
from xfelproc.models.experiment import Beam, Detector, Panel
from xfelproc.models.frames import Frame, FrameRef

PANEL = Panel("m", (1, 0, 0), (0, -1, 0), (0, 0, -100), (0.075, 0.075), (1024, 512))
DETECTOR = Detector(tuple(replace(PANEL, name=f"m{n}") for n in range(9)))
SHAPE = DETECTOR.stack_shape
CODING = StageCoding("bits", np.array([[0, 1, -1, 2]], dtype=np.int8))


def constants_of(stages: int) -> DetectorConstants:
    rng = np.random.default_rng(1)
    pedestal = np.stack([rng.normal(level, 50, SHAPE).astype(np.float32) for level in (2900, 13500, 14100)[:stages]])
    gain = np.stack([rng.normal(mean, abs(mean) / 30, SHAPE).astype(np.float32) for mean in (500, -18, -1.3)[:stages]])
    return DetectorConstants(pedestal, pedestal, gain, coding=CODING if stages > 1 else None)


def raw(switched: float) -> NDArray[np.uint16]:
    """Return a raw frame with spots: clusters of 3 x 3 pixels in the second stage, ``switched`` of all pixels."""
    rng = np.random.default_rng(2)
    values = rng.normal(2900 + 500 * rng.poisson(1.0, SHAPE), 60).astype(np.uint16)
    for _ in range(int(switched * values.size / 9)):
        p, y, x = (int(rng.integers(0, size - 3)) if axis else int(rng.integers(0, size)) for axis, size in enumerate(SHAPE))
        values[p, y : y + 3, x : x + 3] = (1 << 14) | 12000
    return values


def frame_of(pixels: NDArray[np.uint16]) -> Frame:
    return Frame(FrameRef(0, 0), pixels, np.zeros(SHAPE, np.uint8), DETECTOR.trusted_ranges, DETECTOR, Beam(1.0))


@pytest.mark.parametrize("kind", ["one stage", "three stages", "three stages, 1 % switched"])
def test_calibrate(benchmark: BenchmarkFixture, kind: str) -> None:
    frame = frame_of(raw(0.01 if "switched" in kind else 0.0))
    calibrate = Calibrate()
    constants = calibrate.constants(DETECTOR, frame.mask, calibration=constants_of(1 if kind == "one stage" else 3))
    benchmark(lambda: calibrate.apply(frame, constants))


@pytest.mark.parametrize("kind", ["first pass", "second pass", "second pass, three stages"])
def test_add_dark(benchmark: BenchmarkFixture, kind: str) -> None:
    frame, coding = frame_of(raw(0.0)), CODING if "stages" in kind else None
    first = None
    if "second" in kind:
        before = DarkSums(Darks(), coding)
        for _ in range(3):
            before.add(frame)
        first = dark_means(before.partial())
    sums = DarkSums(Darks(), coding, first)
    sums.add(frame)
    benchmark(lambda: sums.add(frame))
