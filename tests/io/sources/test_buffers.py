from __future__ import annotations

import numpy as np

from xfelproc.io.sources.buffers import BufferPool


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_an_array_is_used_again_when_nobody_holds_it() -> None:
    pool = BufferPool()
    first = pool.take((50, 60), np.int32)
    address = _address(first)
    second = pool.take((50, 60), np.int32)
    assert _address(second) != address
    view = first.reshape(-1)[5:]
    del first
    assert _address(pool.take((50, 60), np.int32)) not in (address, _address(second))
    del view
    assert _address(pool.take((50, 60), np.int32)) == address


def test_shape_and_type_must_be_equal() -> None:
    pool = BufferPool()
    address = _address(pool.take((4, 4), np.int32))
    assert pool.take((4, 4), np.uint32).dtype == np.uint32
    assert pool.take((2, 8), np.int32).shape == (2, 8)
    assert _address(pool.take((4, 4), np.int32)) == address


def test_only_a_few_are_kept() -> None:
    pool = BufferPool()
    for n in range(1, 20):
        pool.take((n,), np.uint8)
    assert len(pool._arrays) == 4
