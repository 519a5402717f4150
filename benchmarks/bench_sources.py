"""Reading and decoding of CBF frames; the md5 of the same bytes is the yardstick."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.io.sources.cbf_files import MINI, mini_cbf
from tests.kernels.test_cbf import I32, PACKED, encode_byte_offset, encode_packed
from xfelproc.io.sources import open_source
from xfelproc.kernels.cbf import decode_byte_offset, decode_packed

SIZE_6M = 2463 * 2527


def _stream(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, dtype=np.uint8)


@pytest.fixture(scope="module")
def rows() -> NDArray[np.int32]:
    """A hundred rows with background, spots and gaps; encoders in Python are slow, so frames repeat them."""
    rng = np.random.default_rng(7)
    pixels = rng.poisson(4.0, (100, 2463)).astype(np.int32)
    pixels[rng.random(pixels.shape) < 1e-3] += 5000
    pixels[:, ::495] = -1
    return pixels


def test_byte_offset_6m(benchmark: Any, rows: NDArray[np.int32]) -> None:
    ends_at_zero = np.append(rows.ravel(), 0).astype(np.int32)
    part = encode_byte_offset(ends_at_zero)
    repeats = SIZE_6M // ends_at_zero.size
    data = _stream(part * repeats)
    out = np.empty(ends_at_zero.size * repeats, dtype=np.int32)
    assert benchmark(decode_byte_offset, data, out, *I32) == data.size


def test_md5_6m(benchmark: Any, rows: NDArray[np.int32]) -> None:
    part = encode_byte_offset(rows)
    data = part * (SIZE_6M // rows.size)
    benchmark(lambda: hashlib.md5(data, usedforsecurity=False).digest())


def test_packed_quarter_megapixel(benchmark: Any, rows: NDArray[np.int32]) -> None:
    stack = rows.reshape(1, *rows.shape)
    data = _stream(encode_packed(stack, PACKED, True, 5))
    out = np.empty_like(stack)
    assert benchmark(decode_packed, data, out, PACKED, True, *I32) == data.size


def test_read_a_minicbf(benchmark: Any, rows: NDArray[np.int32], tmp_path: Path) -> None:
    path = tmp_path / "a_0001.cbf"
    path.write_bytes(mini_cbf(rows, MINI))
    source = open_source(path)
    source.read(0)
    benchmark(source.read, 0)
