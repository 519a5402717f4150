"""The decoders against plain-Python encoders written from the definition of the formats."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from xfelproc.kernels.cbf import OVERFLOW, TRUNCATED, decode_byte_offset, decode_packed, packed_length

I32 = (-(2**31), 2**31 - 1)
PACKED = np.array([0, 4, 5, 6, 7, 8, 16, 65])
PACKED_V2 = np.array([0, *range(3, 17), 65])


def encode_byte_offset(values: np.ndarray) -> bytes:
    out = bytearray()
    for before, value in pairwise([0, *(int(v) for v in values.reshape(-1))]):
        delta = value - before
        for width in (1, 2, 4, 8):
            lowest = -(1 << (8 * width - 1))
            if lowest < delta < -lowest:
                out += delta.to_bytes(width, "little", signed=True)
                break
            out += lowest.to_bytes(width, "little", signed=True)
    return bytes(out)


def _mean(a: np.ndarray, z: int, y: int, x: int, correlated: bool) -> int:
    last = a.shape[2] - 1
    if y == 0:
        return int(a[z, 0, x - 1]) if x else (int(a[z - 1, 0, 0]) if z else 0)
    sections = [z - 1, z] if z and correlated else [z]
    near = []
    for s in sections:
        here = a[z, y, x - 1] if s == z else a[s, y, x]
        if x == 0:
            near += [a[s, y - 1, 0], a[s, y - 1, min(1, last)]]
        elif x == last:
            near += [a[s, y - 1, x], here]
        else:
            near += [*a[s, y - 1, x - 1 : x + 2], here]
    return (sum(int(v) for v in near) + len(near) // 2) // len(near)


def encode_packed(a: np.ndarray, widths: np.ndarray, correlated: bool, group: int) -> bytes:
    """Groups of 2**group elements (shorter ones at the end), each in the least width that holds it."""
    deltas = [int(a[index]) - _mean(a, *index, correlated) for index in np.ndindex(*a.shape)]
    stream, used = 0, 0
    start = 0
    while start < len(deltas):
        exponent = group
        while start + (1 << exponent) > len(deltas):
            exponent -= 1
        part = deltas[start : start + (1 << exponent)]
        start += len(part)
        need = max((0 if d == 0 else (d if d > 0 else -d - 1).bit_length() + 1) for d in part)
        code = int(np.searchsorted(widths, need))
        stream |= (exponent | code << 3) << used
        used += 6 if len(widths) == 8 else 7
        bits = int(widths[code])
        for d in part:
            stream |= (d & ((1 << bits) - 1)) << used
            used += bits
    return stream.to_bytes((used + 7) // 8, "little")


def _bytes(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype=np.uint8)


@settings(max_examples=60, deadline=None)
@given(arrays(np.int32, st.integers(1, 60), elements=st.one_of(st.integers(-300, 300), st.integers(*I32))))
def test_byte_offset_round_trip(values: np.ndarray) -> None:
    data = encode_byte_offset(values)
    out = np.empty_like(values)
    assert decode_byte_offset(_bytes(data), out, *I32) == len(data)
    assert np.array_equal(out, values)
    assert decode_byte_offset(_bytes(data[:-1]), out, *I32) == TRUNCATED


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.uint32])
def test_byte_offset_into_other_types(dtype: type) -> None:
    info = np.iinfo(dtype)
    values = np.array([0, 1, info.max, 5, info.min, info.max], dtype=dtype)
    out = np.empty_like(values)
    data = encode_byte_offset(values)
    assert decode_byte_offset(_bytes(data), out, info.min, info.max) == len(data)
    assert np.array_equal(out, values)


def test_values_beyond_the_type_are_an_error() -> None:
    out = np.empty(2, dtype=np.int32)
    assert decode_byte_offset(_bytes(encode_byte_offset(np.array([2**31, 0]))), out, *I32) == OVERFLOW
    stack = np.empty((1, 1, 2), dtype=np.int32)
    data = encode_packed(np.array([[[2**31, 0]]]), PACKED, True, 0)
    assert decode_packed(_bytes(data), stack, PACKED, True, *I32) == OVERFLOW


@settings(max_examples=80, deadline=None)
@given(
    values=arrays(
        np.int32,
        st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6)),
        elements=st.one_of(st.integers(-20, 20), st.integers(-40000, 40000), st.integers(*I32)),
    ),
    version=st.sampled_from([PACKED, PACKED_V2]),
    correlated=st.booleans(),
    group=st.integers(0, 7),
)
def test_packed_round_trip(values: np.ndarray, version: np.ndarray, correlated: bool, group: int) -> None:
    data = encode_packed(values, version, correlated, group)
    out = np.empty_like(values)
    assert decode_packed(_bytes(data), out, version, correlated, *I32) == len(data)
    assert np.array_equal(out, values)
    assert decode_packed(_bytes(data[:-1]), out, version, correlated, *I32) in (TRUNCATED, OVERFLOW)
    if version is PACKED:
        assert packed_length(_bytes(data + b"more"), values.size, version) == len(data)
        assert packed_length(_bytes(data[:-1]), values.size, version) == TRUNCATED
