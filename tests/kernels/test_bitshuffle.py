from __future__ import annotations

import h5py
import hdf5plugin
import numpy as np
import pytest
from numpy.typing import NDArray

from xfelproc.kernels import bitshuffle as bs


def chunk_of(array: NDArray[np.generic], block: int = 0) -> NDArray[np.uint8]:
    """Return an array as one stored chunk."""
    with h5py.File("x", "w", driver="core", backing_store=False) as file:
        filters = hdf5plugin.Bitshuffle(nelems=block, cname="lz4")
        dataset = file.create_dataset("d", data=array, chunks=array.shape, compression=filters)
        return np.frombuffer(dataset.id.read_direct_chunk((0,) * array.ndim)[1], dtype=np.uint8).copy()


def decode(raw: NDArray[np.uint8], like: NDArray[np.generic]) -> tuple[int, NDArray[np.generic]]:
    words = np.empty(like.nbytes // 8 + 1, dtype=np.uint64)
    octets = words.view(np.uint8)[: like.nbytes]
    code = bs.decode_bitshuffle_lz4(raw, like.dtype.itemsize, octets, words[: like.nbytes // 8], np.empty(1 << 17, dtype=np.uint8))
    return int(code), octets.view(like.dtype).reshape(like.shape)


def reference_untranspose(rows: NDArray[np.uint8], n: int, element: int) -> NDArray[np.uint8]:
    """Undo the bit transposition with numpy: bit b of byte j of element e is bit e of row 8 j + b."""
    bits = np.unpackbits(rows.reshape(8 * element, n // 8), axis=1, bitorder="little")
    return np.packbits(bits.T, axis=1, bitorder="little").reshape(-1)


@pytest.mark.parametrize(("element", "n"), [(2, 4096), (2, 64), (4, 2048), (4, 40), (1, 80), (8, 24)])
@pytest.mark.parametrize("planes", [1, 8])
def test_untranspose_is_the_numpy_reference(element: int, n: int, planes: int) -> None:
    rng = np.random.default_rng(element * n)
    rows = np.zeros(element * n + 32, dtype=np.uint8)
    filled = min(planes, element) * n
    rows[:filled] = rng.integers(0, 256, filled)
    expected = reference_untranspose(rows[: element * n], n, element)
    out = np.empty(element * n // 8, dtype=np.uint64)
    if element == 2:
        bs.untranspose16(rows, n, out)
    elif element == 4:
        bs.untranspose32(rows, n, out)
    else:
        bs.untranspose(rows, n, element, out.view(np.uint8))
    assert np.array_equal(out.view(np.uint8), expected)


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "u4", "f4", "f8"])
@pytest.mark.parametrize("shape", [(1, 100, 123), (1, 512, 512), (1, 3, 5)])
@pytest.mark.parametrize("mean", [0.02, 3.0, 60.0])
def test_decodes_what_the_filter_wrote(dtype: str, shape: tuple[int, ...], mean: float) -> None:
    rng = np.random.default_rng(int(100 * mean))
    array = rng.poisson(mean, shape).astype(dtype)
    array[0, 1] = np.iinfo(dtype).max if np.dtype(dtype).kind in "iu" else -1.5e30
    code, found = decode(chunk_of(array), array)
    assert code == bs.OK
    assert np.array_equal(found, array)


@pytest.mark.parametrize("block", [8, 64, 1000, 8192])
def test_decodes_any_block_size(block: int) -> None:
    array = np.random.default_rng(1).integers(0, 300, (1, 77, 91)).astype(np.uint16)
    code, found = decode(chunk_of(array, block // 8 * 8), array)
    assert code == bs.OK
    assert np.array_equal(found, array)


def test_repeating_patterns_of_every_period() -> None:
    for period in range(1, 40):
        array = np.resize(np.random.default_rng(period).integers(0, 256, period), (1, 64, 128)).astype(np.uint8)
        code, found = decode(chunk_of(array), array)
        assert code == bs.OK
        assert np.array_equal(found, array)


def test_truncated_chunks_are_errors() -> None:
    array = np.random.default_rng(2).poisson(3, (1, 100, 200)).astype(np.uint16)
    raw = chunk_of(array)
    for size in [0, 5, 11, 12, 15, 16, 100, len(raw) // 2, len(raw) - 1]:
        assert decode(raw[:size].copy(), array)[0] != bs.OK
    assert decode(np.append(raw, raw[:7]), array)[0] == bs.ERROR_TRUNCATED


def test_a_chunk_of_another_size_is_an_error() -> None:
    array = np.random.default_rng(3).poisson(3, (1, 100, 200)).astype(np.uint16)
    assert decode(chunk_of(array), array[:, :99])[0] == bs.ERROR_HEADER


def test_corrupt_chunks_stay_within_their_buffers() -> None:
    rng = np.random.default_rng(4)
    array = rng.poisson(0.3, (1, 64, 256)).astype(np.uint16)
    raw = chunk_of(array)
    words = np.full(array.nbytes // 8 + 2, 0xABABABABABABABAB, dtype=np.uint64)
    octets = words.view(np.uint8)[8 : 8 + array.nbytes]
    block = 8192
    scratch = np.full(block + 2 * bs.SLACK, 0xCD, dtype=np.uint8)
    failed = 0
    for _ in range(2000):
        bad = raw.copy()
        at = rng.integers(12, len(bad), 3)
        bad[at] = rng.integers(0, 256, 3)
        failed += bs.decode_bitshuffle_lz4(bad, 2, octets, words[1:-1], scratch[: block + bs.SLACK]) != bs.OK
        assert words[0] == words[-1] == 0xABABABABABABABAB
        assert (scratch[block + bs.SLACK :] == 0xCD).all()
    assert failed > 500
