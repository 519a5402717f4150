"""Decoding of bitshuffle-LZ4 chunks (HDF5 filter 32008, compression 2).

A chunk is: the size in bytes decoded (8 bytes, big endian), the size of a block in bytes (4 bytes, big endian), then for each
block the size of its LZ4 stream (4 bytes, big endian) and the stream; elements beyond the last multiple of 8 stand undecoded at the
end. A decoded block of n elements of E bytes holds 8 E rows of n/8 bytes: row 8 j + b has bit b of byte j of every element,
eight elements a byte, the first in the lowest bit (Masui et al. 2015, Astronomy and Computing 12, 181; the LZ4 block format).

Every read and write is checked against the buffers' ends: a corrupt chunk gives an error code, never a wrong access.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numba.np import arrayobj
from numpy.typing import NDArray

OK = 0
ERROR_HEADER = 1
ERROR_TRUNCATED = 2
ERROR_BLOCK = 3

SLACK = 32
"""Bytes by which a buffer for decoded blocks must be longer than a block."""

Bytes = NDArray[np.uint8]
Int = int | np.int64


def _generate_load8(context: Any, array: Any, index: Any) -> Any:
    def generate(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = _make_array(signature.args[0])(target, builder, args[0]).data
        word = builder.load(builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(64).as_pointer()))
        word.align = 1
        return word

    return types.uint64(array, index), generate


def _generate_store8(context: Any, array: Any, index: Any, value: Any) -> Any:
    def generate(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = _make_array(signature.args[0])(target, builder, args[0]).data
        word = builder.store(args[2], builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(64).as_pointer()))
        word.align = 1
        return target.get_dummy_value()

    return types.void(array, index, types.uint64), generate


# load and store 8 bytes anywhere in a byte array: numba's own indexing knows aligned words alone
_make_array: Any = arrayobj.make_array
_load8: Any = intrinsic(_generate_load8)
_store8: Any = intrinsic(_generate_store8)


@njit(cache=True, nogil=True)
def _copy(source: Bytes, start: Int, target: Bytes, at: Int, n: Int) -> None:
    """Copy n bytes; the regions must not overlap closer than 8 bytes."""
    whole = n // 8 * 8
    for k in range(0, whole, 8):
        _store8(target, at + k, _load8(source, start + k))
    for k in range(whole, n):
        target[at + k] = source[start + k]


@njit(cache=True, nogil=True)
def _copy_over(source: Bytes, start: Int, target: Bytes, at: Int, n: Int) -> None:
    """Copy n bytes, and up to 15 more: the caller has made sure that there is room on both sides."""
    k = 0
    while k < n:
        _store8(target, at + k, _load8(source, start + k))
        _store8(target, at + k + 8, _load8(source, start + k + 8))
        k += 16


@njit(cache=True, nogil=True)
def _copy_match(target: Bytes, op: Int, offset: Int, n: Int) -> None:
    """Repeat what stands ``offset`` bytes before ``op`` for n bytes, writing up to 15 more."""
    if offset >= 16:
        _copy_over(target, op - offset, target, op, n)
        return
    step = offset
    while step < 8:
        step += offset
    # the pattern repeats after `step` as well as after `offset`: once it stands that often, words of 8 bytes can be copied
    lead = min(step - offset, n)
    for k in range(lead):
        target[op + k] = target[op + k - offset]
    for k in range(lead, n, 8):
        _store8(target, op + k, _load8(target, op + k - step))


@njit(cache=True, nogil=True)
def _length(source: Bytes, ip: Int, stop: Int) -> tuple[Int, Int]:
    """Return the extension of a length and where it ends; -1 if it runs over the end."""
    n = np.int64(0)
    while ip < stop:
        more = np.int64(source[ip])
        ip += 1
        n += more
        if more != 255:
            return n, ip
    return np.int64(-1), ip


@njit(cache=True, nogil=True)
def lz4_block(source: Bytes, start: Int, stop: Int, target: Bytes, size: Int) -> bool:
    """Decode the LZ4 block ``source[start:stop]`` into ``target[:size]``; False if it is corrupt or not exactly of that size.

    ``target`` must have `SLACK` bytes more than ``size``: they may be overwritten.
    """
    ip = start
    op = np.int64(0)
    while ip < stop:
        token = np.int64(source[ip])
        ip += 1
        n = token >> 4
        if n == 15:
            more, ip = _length(source, ip, stop)
            if more < 0:
                return False
            n += more
        if n > stop - ip or n > size - op:
            return False
        if ip + n + 16 <= source.size:
            _copy_over(source, ip, target, op, n)
        else:
            _copy(source, ip, target, op, n)
        ip += n
        op += n
        if ip >= stop:
            break
        if ip + 2 > stop:
            return False
        offset = np.int64(source[ip]) | (np.int64(source[ip + 1]) << 8)
        ip += 2
        if offset == 0 or offset > op:
            return False
        n = token & 15
        if n == 15:
            more, ip = _length(source, ip, stop)
            if more < 0:
                return False
            n += more
        n += 4
        if n > size - op:
            return False
        _copy_match(target, op, offset, n)
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
def _gather(rows: Bytes, start: Int, stride: Int, i: Int) -> np.uint64:
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
def _is_zero(rows: Bytes, start: Int, n: Int) -> bool:
    """Return whether n bytes (a multiple of 8) are all zero."""
    seen = np.uint64(0)
    for k in range(start, start + n, 8):
        seen |= _load8(rows, k)
    return bool(seen == 0)


@njit(inline="always")
def _planes16(rows: Bytes, stride: Int, out: NDArray[np.uint64]) -> None:
    """See `untranspose16`; ``stride`` is the length of a row."""
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
def untranspose16(rows: Bytes, n: Int, out: NDArray[np.uint64]) -> None:
    """Undo the bit transposition of n 16-bit elements (a multiple of 8) into ``out``, four elements a word."""
    # with a row length that the compiler knows it needs one check that rows and out are apart, not one a row, and uses vectors
    if n == 4096:
        _planes16(rows, 512, out)
    else:
        _planes16(rows, n // 8, out)


@njit(cache=True, nogil=True)
def _spread32(x: np.uint64) -> np.uint64:
    """Put the low two 16-bit fields of a word into the low halves of two 32-bit fields."""
    return (x | (x << np.uint64(16))) & np.uint64(0x0000FFFF0000FFFF)


@njit(inline="always")
def _planes32(rows: Bytes, stride: Int, out: NDArray[np.uint64]) -> None:
    """See `untranspose32`; ``stride`` is the length of a row."""
    low32 = np.uint64(0x00000000FFFFFFFF)
    half = np.uint64(32)
    if _is_zero(rows, 8 * stride, 24 * stride):
        for i in range(stride):
            byte = _transpose8(_gather(rows, 0, stride, i))
            first = _spread16(byte)
            second = _spread16(byte >> half)
            out[4 * i] = _spread32(first & low32)
            out[4 * i + 1] = _spread32(first >> half)
            out[4 * i + 2] = _spread32(second & low32)
            out[4 * i + 3] = _spread32(second >> half)
        return
    for i in range(stride):
        byte = _transpose8(_gather(rows, 0, stride, i))
        above = _transpose8(_gather(rows, 8 * stride, stride, i))
        first = _spread16(byte) | (_spread16(above) << np.uint64(8))
        second = _spread16(byte >> half) | (_spread16(above >> half) << np.uint64(8))
        byte = _transpose8(_gather(rows, 16 * stride, stride, i))
        above = _transpose8(_gather(rows, 24 * stride, stride, i))
        third = _spread16(byte) | (_spread16(above) << np.uint64(8))
        fourth = _spread16(byte >> half) | (_spread16(above >> half) << np.uint64(8))
        out[4 * i] = _spread32(first & low32) | (_spread32(third & low32) << np.uint64(16))
        out[4 * i + 1] = _spread32(first >> half) | (_spread32(third >> half) << np.uint64(16))
        out[4 * i + 2] = _spread32(second & low32) | (_spread32(fourth & low32) << np.uint64(16))
        out[4 * i + 3] = _spread32(second >> half) | (_spread32(fourth >> half) << np.uint64(16))


@njit(cache=True, nogil=True)
def untranspose32(rows: Bytes, n: Int, out: NDArray[np.uint64]) -> None:
    """Undo the bit transposition of n 32-bit elements (a multiple of 8) into ``out``, two elements a word."""
    # with a row length that the compiler knows it needs one check that rows and out are apart, not one a row, and uses vectors
    if n == 2048:
        _planes32(rows, 256, out)
    else:
        _planes32(rows, n // 8, out)


@njit(cache=True, nogil=True)
def untranspose(rows: Bytes, n: Int, element: Int, out: Bytes) -> None:
    """Undo the bit transposition of n elements of any size (n a multiple of 8) into ``out``."""
    stride = n // 8
    for i in range(stride):
        for j in range(element):
            word = _transpose8(_gather(rows, 8 * j * stride, stride, i))
            for k in range(8):
                out[(8 * i + k) * element + j] = np.uint8((word >> np.uint64(8 * k)) & np.uint64(255))


@njit(cache=True, nogil=True)
def _big_endian(data: Bytes, start: Int, n: Int) -> Int:
    value = np.int64(0)
    for k in range(n):
        value = (value << 8) | np.int64(data[start + k])
    return value


@njit(cache=True, nogil=True)
def decode_bitshuffle_lz4(data: Bytes, element: Int, out: Bytes, out64: NDArray[np.uint64], scratch: Bytes) -> Int:
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
        Room for one block and `SLACK` bytes.

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
    if total != out.size or block % (8 * element) != 0 or block > scratch.size - SLACK or block <= 0:
        return ERROR_HEADER
    ip: Int = 12
    done: Int = 0
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
            untranspose16(scratch, size // 2, out64[done // 8 : (done + size) // 8])
        elif element == 4:
            untranspose32(scratch, size // 4, out64[done // 8 : (done + size) // 8])
        else:
            untranspose(scratch, size // element, element, out[done : done + size])
        ip += n
        done += size
    rest = total - whole
    if ip + rest != data.size:
        return ERROR_TRUNCATED
    _copy(data, ip, out, done, rest)
    return OK
