"""Decoding of bitshuffle-LZ4 chunks (HDF5 filter 32008, compression 2).

A chunk is: the size in bytes decoded (8 bytes, big endian), the size of a block in bytes (4 bytes, big endian), then for each
block the size of its LZ4 stream (4 bytes, big endian) and the stream; elements beyond the last multiple of 8 stand undecoded at the
end. A decoded block of n elements of E bytes holds 8 E rows of n/8 bytes: row 8 j + b has bit b of byte j of every element,
eight elements a byte, the first in the lowest bit (Masui et al. 2015, Astronomy and Computing 12, 181; the LZ4 block format).

Every read and write is checked against the buffers' ends: a corrupt chunk gives an error code, never a wrong access.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

OK = 0
ERROR_HEADER = 1
ERROR_TRUNCATED = 2
ERROR_BLOCK = 3

Bytes = NDArray[np.uint8]


@njit(cache=True, nogil=True)
def _copy(source: Bytes, start: int, target: Bytes, at: int, n: int) -> None:
    for k in range(n):
        target[at + k] = source[start + k]


@njit(cache=True, nogil=True)
def lz4_block(source: Bytes, start: int, stop: int, target: Bytes, size: int) -> bool:
    """Decode the LZ4 block ``source[start:stop]`` into ``target[:size]``; False if it is corrupt or not exactly of that size."""
    ip = start
    op = 0
    while ip < stop:
        token = int(source[ip])
        ip += 1
        n = token >> 4
        if n == 15:
            more = 255
            while more == 255:
                if ip >= stop:
                    return False
                more = int(source[ip])
                ip += 1
                n += more
        if n > stop - ip or n > size - op:
            return False
        _copy(source, ip, target, op, n)
        ip += n
        op += n
        if ip >= stop:
            break
        if ip + 2 > stop:
            return False
        offset = int(source[ip]) | (int(source[ip + 1]) << 8)
        ip += 2
        if offset == 0 or offset > op:
            return False
        n = token & 15
        if n == 15:
            more = 255
            while more == 255:
                if ip >= stop:
                    return False
                more = int(source[ip])
                ip += 1
                n += more
        n += 4
        if n > size - op:
            return False
        match = op - offset
        if offset == 1:
            value = target[match]
            target[op : op + n] = value
        elif offset >= n:
            _copy(target, match, target, op, n)
        else:
            for k in range(n):
                target[op + k] = target[match + k]
        op += n
    return bool(op == size)


@njit(cache=True, nogil=True)
def _transpose8(x: np.uint64) -> np.uint64:
    """Transpose the 8 x 8 bits of a word (byte = row), by exchanging blocks of 1, 2 and 4 (Warren, Hacker's Delight, 7-3)."""
    t = (x ^ (x >> np.uint64(7))) & np.uint64(0x00AA00AA00AA00AA)
    x = x ^ t ^ (t << np.uint64(7))
    t = (x ^ (x >> np.uint64(14))) & np.uint64(0x0000CCCC0000CCCC)
    x = x ^ t ^ (t << np.uint64(14))
    t = (x ^ (x >> np.uint64(28))) & np.uint64(0x00000000F0F0F0F0)
    return x ^ t ^ (t << np.uint64(28))


@njit(cache=True, nogil=True)
def _gather(rows: Bytes, start: int, stride: int, i: int) -> np.uint64:
    x = np.uint64(rows[start + i])
    x |= np.uint64(rows[start + stride + i]) << np.uint64(8)
    x |= np.uint64(rows[start + 2 * stride + i]) << np.uint64(16)
    x |= np.uint64(rows[start + 3 * stride + i]) << np.uint64(24)
    x |= np.uint64(rows[start + 4 * stride + i]) << np.uint64(32)
    x |= np.uint64(rows[start + 5 * stride + i]) << np.uint64(40)
    x |= np.uint64(rows[start + 6 * stride + i]) << np.uint64(48)
    x |= np.uint64(rows[start + 7 * stride + i]) << np.uint64(56)
    return x


@njit(cache=True, nogil=True)
def _spread16(x: np.uint64) -> np.uint64:
    """Put the low four bytes of a word into the low bytes of four 16-bit fields."""
    x = x & np.uint64(0x00000000FFFFFFFF)
    x = (x | (x << np.uint64(16))) & np.uint64(0x0000FFFF0000FFFF)
    return (x | (x << np.uint64(8))) & np.uint64(0x00FF00FF00FF00FF)


@njit(cache=True, nogil=True)
def _is_zero(rows: Bytes, start: int, n: int) -> bool:
    seen = np.uint8(0)
    for k in range(start, start + n):
        seen |= rows[k]
    return bool(seen == 0)


@njit(cache=True, nogil=True)
def untranspose16(rows: Bytes, n: int, out: NDArray[np.uint64]) -> None:
    """Undo the bit transposition of n 16-bit elements (a multiple of 8) into ``out``, four elements a word."""
    stride = n // 8
    if _is_zero(rows, 8 * stride, 8 * stride):
        for i in range(stride):
            low = _transpose8(_gather(rows, 0, stride, i))
            out[2 * i] = _spread16(low)
            out[2 * i + 1] = _spread16(low >> np.uint64(32))
        return
    for i in range(stride):
        low = _transpose8(_gather(rows, 0, stride, i))
        high = _transpose8(_gather(rows, 8 * stride, stride, i))
        out[2 * i] = _spread16(low) | (_spread16(high) << np.uint64(8))
        out[2 * i + 1] = _spread16(low >> np.uint64(32)) | (_spread16(high >> np.uint64(32)) << np.uint64(8))


@njit(cache=True, nogil=True)
def untranspose32(rows: Bytes, n: int, out: NDArray[np.uint64]) -> None:
    """Undo the bit transposition of n 32-bit elements (a multiple of 8) into ``out``, two elements a word."""
    stride = n // 8
    mask = np.uint64(0x000000FF000000FF)
    upper_zero = _is_zero(rows, 16 * stride, 16 * stride)
    for i in range(stride):
        b0 = _transpose8(_gather(rows, 0, stride, i))
        b1 = _transpose8(_gather(rows, 8 * stride, stride, i))
        b2 = np.uint64(0)
        b3 = np.uint64(0)
        if not upper_zero:
            b2 = _transpose8(_gather(rows, 16 * stride, stride, i))
            b3 = _transpose8(_gather(rows, 24 * stride, stride, i))
        for k in range(4):
            s = np.uint64(16 * k)
            w0 = b0 >> s
            w1 = b1 >> s
            word = ((w0 | (w0 << np.uint64(24))) & mask) | (((w1 | (w1 << np.uint64(24))) & mask) << np.uint64(8))
            if not upper_zero:
                w2 = b2 >> s
                w3 = b3 >> s
                word |= ((w2 | (w2 << np.uint64(24))) & mask) << np.uint64(16)
                word |= ((w3 | (w3 << np.uint64(24))) & mask) << np.uint64(24)
            out[4 * i + k] = word


@njit(cache=True, nogil=True)
def untranspose(rows: Bytes, n: int, element: int, out: Bytes) -> None:
    """Undo the bit transposition of n elements of any size (n a multiple of 8) into ``out``."""
    stride = n // 8
    for i in range(stride):
        for j in range(element):
            word = _transpose8(_gather(rows, 8 * j * stride, stride, i))
            for k in range(8):
                out[(8 * i + k) * element + j] = np.uint8((word >> np.uint64(8 * k)) & np.uint64(255))


@njit(cache=True, nogil=True)
def _big_endian(data: Bytes, start: int, n: int) -> int:
    value = 0
    for k in range(n):
        value = (value << 8) | int(data[start + k])
    return value


@njit(cache=True, nogil=True)
def decode_bitshuffle_lz4(data: Bytes, element: int, out: Bytes, out64: NDArray[np.uint64], scratch: Bytes) -> int:
    """Decode one chunk.

    Parameters
    ----------
    data
        The chunk as stored.
    element
        Bytes of an element.
    out, out64
        The same memory (aligned to 8 bytes) as bytes and as words; ``out`` has exactly the size of the decoded chunk.
    scratch
        Room for one block.

    Returns
    -------
    int
        `OK`, or what is wrong with the chunk: `ERROR_HEADER`, `ERROR_TRUNCATED`, `ERROR_BLOCK`.
    """
    if data.size < 12:
        return ERROR_TRUNCATED
    total = _big_endian(data, 0, 8)
    block = _big_endian(data, 8, 4)
    if block == 0:
        block = 8192 // element // 8 * 8 * element
    if total != out.size or block % (8 * element) != 0 or block > scratch.size or block <= 0:
        return ERROR_HEADER
    ip = 12
    done = 0
    whole = total // (8 * element) * (8 * element)
    while done < whole:
        size = min(block, whole - done)
        if ip + 4 > data.size:
            return ERROR_TRUNCATED
        n = _big_endian(data, ip, 4)
        ip += 4
        if n > data.size - ip:
            return ERROR_TRUNCATED
        if not lz4_block(data, ip, ip + n, scratch, size):
            return ERROR_BLOCK
        if element == 2:
            untranspose16(scratch, size // 2, out64[done // 8 :])
        elif element == 4:
            untranspose32(scratch, size // 4, out64[done // 8 :])
        else:
            untranspose(scratch, size // element, element, out[done : done + size])
        ip += n
        done += size
    rest = total - whole
    if ip + rest != data.size:
        return ERROR_TRUNCATED
    _copy(data, ip, out, done, rest)
    return OK
