"""Summation of a thousand reflections on 4 megapixels, by type of pixel: `pytest benchmarks/bench_integration.py`."""

from __future__ import annotations

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from xfelproc.kernels.integration import integrate_still


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_a_thousand_reflections(benchmark: BenchmarkFixture, dtype: type) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.poisson(3.0, (1, 2000, 2000)).astype(dtype)
    mask = np.zeros(pixels.shape, dtype=np.uint8)
    n = 1000
    fast, slow = rng.uniform(10, 1990, (2, n))
    out, flags = np.zeros((n, 5)), np.zeros(n, dtype=np.uint16)
    benchmark(
        integrate_still,
        pixels,
        mask,
        np.array([[-0.5, 60000.0]]),
        np.array([[2000, 2000]]),
        np.zeros(n, np.int32),
        fast,
        slow,
        np.tile([1.0, 0.0, 1.0, 3.0, 5.0, 8.0, 5.0], (n, 1)),
        4.0,
        30,
        out,
        flags,
    )
    assert np.all(np.isfinite(out))
