"""What a run costs beside the algorithms: publishing a shard, summing pictures, dispatching a unit."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np

from tests.io.test_shards import header, unit
from xfelproc.drivers.inline import InlineDriver
from xfelproc.io.shards import read_header, write_shard
from xfelproc.kernels.accumulate import accumulate_binned
from xfelproc.run.loop import Dispatch


def test_publish_a_shard_of_8_frames(benchmark: Any, tmp_path: Path) -> None:
    path, result = tmp_path / "a.h5", unit(8)
    benchmark(lambda: write_shard(path, header(path), result))


def test_read_a_header(benchmark: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_shard(path, header(path), unit(8))
    benchmark(lambda: read_header(path))


def test_add_a_frame_to_the_picture(benchmark: Any) -> None:
    """4 megapixels; one frame in ten is added."""
    pixels = np.random.default_rng(0).poisson(3, (1, 2000, 2000)).astype(np.uint16)
    mask, trusted = np.zeros(pixels.shape, np.uint8), np.array([[0.0, 60000.0]])
    total, maximum = np.zeros((1, 1000, 1000), np.float32), np.zeros((1, 1000, 1000), np.float32)
    benchmark(lambda: accumulate_binned(pixels, mask, trusted, 2, total, maximum))


def test_dispatch_a_thousand_units(benchmark: Any) -> None:
    def submit(executor: Executor, number: int, quarantine: Any) -> Future[int]:
        return executor.submit(int, number)

    def run() -> None:
        done: list[int] = []
        Dispatch(InlineDriver(), submit, done.append, lambda: (), lambda: None, lambda word, details: None).run(range(1000))
        assert len(done) == 1000

    benchmark(run)
