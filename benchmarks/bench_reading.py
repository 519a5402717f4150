"""Reading frames: CPU time of one 4-megapixel frame, and of decoding alone, against the HDF5 filter.

Run with ``pytest benchmarks/bench_reading.py --benchmark-timer=time.process_time``.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest

from tests.conftest import _data_folder
from tests.io.sources import hdf5_files as make
from xfelproc.io.exchange.geom_write import write_geom
from xfelproc.io.sources.hdf5 import open_hdf5
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.kernels.bitshuffle import decode_bitshuffle_lz4
from xfelproc.models.experiment import Beam, Detector, Experiment, Panel

N = 8
SHAPE = (2000, 2000)


@pytest.fixture(scope="module", params=["uint16", "int32"])
def stills(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames of Poisson noise of 3 photons a pixel: as hard to compress as an XFEL background."""
    folder = tmp_path_factory.mktemp("frames")
    make.write(folder / "a.h5", make.frames(N, SHAPE, request.param))
    panel = Panel("p0", (-1, 0, 0), (0, 1, 0), (75, -75, -90), (0.075, 0.075), (SHAPE[1], SHAPE[0]))
    write_geom(Experiment(Beam(1.3), Detector((panel,))), folder / "a.geom")
    text = (folder / "a.geom").read_text().replace("/data/data", "/entry/data/data")
    (folder / "a.geom").write_text(text)
    return folder


def test_frame(benchmark: Any, stills: Path) -> None:
    """The whole of `FrameSource.read`."""
    source = open_hdf5(stills / "a.h5", SourceSettings(geometry=stills / "a.geom"))
    source.read(0)
    numbers: Iterator[int] = cycle(range(N))
    benchmark(lambda: source.read(next(numbers)))


def test_decode(benchmark: Any, stills: Path) -> None:
    """Decoding alone, the chunk in memory."""
    with h5py.File(stills / "a.h5", "r", locking=False) as file:
        dataset = file["entry/data/data"]
        raw = np.frombuffer(dataset.id.read_direct_chunk((0, 0, 0))[1], dtype=np.uint8).copy()
        size = dataset.dtype.itemsize
    words = np.empty(SHAPE[0] * SHAPE[1] * size // 8, dtype=np.uint64)
    scratch = np.empty(1 << 17, dtype=np.uint8)
    octets = words.view(np.uint8)
    decode_bitshuffle_lz4(raw, size, octets, words, scratch)
    benchmark(lambda: decode_bitshuffle_lz4(raw, size, octets, words, scratch))


def test_hdf5_filter(benchmark: Any, stills: Path) -> None:
    """The same by the HDF5 library and its filter, into one buffer."""
    assert hdf5plugin.Bitshuffle.filter_id == 32008
    with h5py.File(stills / "a.h5", "r", locking=False) as file:
        dataset = file["entry/data/data"]
        out = np.empty(SHAPE, dtype=dataset.dtype)
        numbers: Iterator[int] = cycle(range(N))
        benchmark(lambda: dataset.read_direct(out, np.s_[next(numbers)]))


def test_simulated_stills(benchmark: Any) -> None:
    """The stills of an independent simulator."""
    folder = _data_folder() / "stills_nanobragg"
    if not folder.is_dir():
        pytest.skip(f"test data not found at {folder}")
    source = open_hdf5(folder / "stills.h5", SourceSettings(geometry=folder / "stills.geom"))
    source.read(0)
    numbers: Iterator[int] = cycle(range(source.n_frames))
    benchmark(lambda: source.read(next(numbers)))
