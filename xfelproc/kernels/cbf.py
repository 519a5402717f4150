"""Decoders of the compressions of CBF/imgCIF files.

Both read a little-endian stream and write one element after another. They return the bytes used, or a negative number:
`TRUNCATED` where the stream ends too early, `OVERFLOW` where a value does not fit into the type of ``out``.

byte_offset: differences of consecutive elements; one byte, or after the lowest value of a width the next wider integer (1, 2,
4, 8 bytes). packed: differences from the mean of the neighbours that came before, in groups of 2^n of equal width (International
Tables for Crystallography G, 5.6; CBFlib manual 3.3.2, 3.3.3).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

TRUNCATED = -1
OVERFLOW = -2


@njit(cache=True, nogil=True)
def decode_byte_offset(data: NDArray[np.uint8], out: NDArray[Any], low: int, high: int) -> int:
    """Decode ``out.size`` elements of byte-offset data; ``low`` and ``high`` bound the type of ``out`` (1-D)."""
    size = data.size
    pos = 0
    value = np.int64(0)
    for i in range(out.size):
        if pos >= size:
            return -1
        delta = np.int64(np.int8(data[pos]))
        pos += 1
        if delta == -128:
            if pos + 2 > size:
                return -1
            delta = np.int64(np.int16(np.uint16(data[pos]) | np.uint16(np.uint16(data[pos + 1]) << np.uint16(8))))
            pos += 2
            if delta == -32768:
                if pos + 4 > size:
                    return -1
                word = np.uint32(0)
                for k in range(4):
                    word |= np.uint32(np.uint32(data[pos + k]) << np.uint32(8 * k))
                delta = np.int64(np.int32(word))
                pos += 4
                if delta == -2147483648:
                    if pos + 8 > size:
                        return -1
                    wide = np.uint64(0)
                    for k in range(8):
                        wide |= np.uint64(data[pos + k]) << np.uint64(8 * k)
                    delta = np.int64(wide)
                    pos += 8
        value += delta
        if value < low or value > high:
            return -2
        out[i] = value
    return pos


@njit(cache=True, nogil=True, inline="always")
def _predict(out: NDArray[Any], z: int, y: int, x: int, correlated: bool) -> np.int64:
    """Return the rounded mean of the neighbours of element (z, y, x) that are decoded already."""
    last = out.shape[2] - 1
    if y == 0:
        if x > 0:
            return np.int64(out[z, 0, x - 1])
        return np.int64(out[z - 1, 0, 0]) if z > 0 else np.int64(0)
    if x == 0:
        right = 1 if last > 0 else 0
        total = np.int64(out[z, y - 1, 0]) + np.int64(out[z, y - 1, right])
        if correlated and z > 0:
            total += np.int64(out[z - 1, y - 1, 0]) + np.int64(out[z - 1, y - 1, right])
            return (total + 2) >> 2
        return (total + 1) >> 1
    if x == last:
        total = np.int64(out[z, y - 1, x]) + np.int64(out[z, y, x - 1])
        if correlated and z > 0:
            total += np.int64(out[z - 1, y - 1, x]) + np.int64(out[z - 1, y, x])
            return (total + 2) >> 2
        return (total + 1) >> 1
    total = np.int64(out[z, y, x - 1])
    total += np.int64(out[z, y - 1, x - 1]) + np.int64(out[z, y - 1, x]) + np.int64(out[z, y - 1, x + 1])
    if correlated and z > 0:
        total += np.int64(out[z - 1, y, x])
        total += np.int64(out[z - 1, y - 1, x - 1]) + np.int64(out[z - 1, y - 1, x]) + np.int64(out[z - 1, y - 1, x + 1])
        return (total + 4) >> 3
    return (total + 2) >> 2


@njit(cache=True, nogil=True)
def decode_packed(
    data: NDArray[np.uint8], out: NDArray[Any], widths: NDArray[np.int64], correlated: bool, low: int, high: int
) -> int:
    """Decode packed data, after its 32-byte preamble, into ``out`` (section, row, column).

    ``widths`` lists the bits of an element that the group headers choose from: 8 entries for packed, 16 for packed_v2.
    ``correlated`` says whether the mean reaches into the section before.
    """
    size = data.size
    pos = 0
    acc = np.uint64(0)
    have = 0
    width_bits = 3 if widths.size == 8 else 4
    header_bits = 3 + width_bits
    left = 0
    bits = 0
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                while have <= 48 and pos < size:
                    acc |= np.uint64(data[pos]) << np.uint64(have)
                    pos += 1
                    have += 8
                if left == 0:
                    if have < header_bits:
                        return -1
                    head = int(np.int64(acc & np.uint64((1 << header_bits) - 1)))
                    acc >>= np.uint64(header_bits)
                    have -= header_bits
                    left = 1 << (head & 7)
                    bits = int(widths[head >> 3])
                delta = np.int64(0)
                if bits > 32:
                    # 65 bits: 64 and a sign, which no element that fits its type needs
                    wide = np.uint64(0)
                    for k in range(bits):
                        if have == 0:
                            if pos >= size:
                                return -1
                            acc = np.uint64(data[pos])
                            pos += 1
                            have = 8
                        if k < 64:
                            wide |= (acc & np.uint64(1)) << np.uint64(k)
                        acc >>= np.uint64(1)
                        have -= 1
                    delta = np.int64(wide)
                elif bits > 0:
                    if have < bits:
                        return -1
                    shift = np.uint64(64 - bits)
                    delta = np.int64(acc << shift) >> np.int64(shift)
                    acc >>= np.uint64(bits)
                    have -= bits
                left -= 1
                value = _predict(out, z, y, x, correlated) + delta
                if value < low or value > high:
                    return -2
                out[z, y, x] = value
    return pos - have // 8


@njit(cache=True, nogil=True)
def packed_length(data: NDArray[np.uint8], n: int, widths: NDArray[np.int64]) -> int:
    """Return how many bytes ``n`` packed elements take (group headers of 3 + 3 bits, 8 ``widths``), or `TRUNCATED`."""
    bits = data.size * 8
    pos = 0
    done = 0
    while done < n:
        if pos + 6 > bits:
            return -1
        head = int(data[pos >> 3]) >> (pos & 7)
        if (pos & 7) > 2:
            head |= int(data[(pos >> 3) + 1]) << (8 - (pos & 7))
        pos += 6
        count = min(1 << (head & 7), n - done)
        pos += count * int(widths[(head >> 3) & 7])
        done += count
    return (pos + 7) >> 3 if pos <= bits else -1
