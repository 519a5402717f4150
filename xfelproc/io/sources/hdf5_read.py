"""Reading the pixels of one frame from HDF5 into a buffer that is used again and again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.io.sources.buffers import POOL
from xfelproc.io.sources.hdf5_file import Hdf5Pool
from xfelproc.io.sources.hdf5_layout import Layout, Part
from xfelproc.kernels.bitshuffle import OK, decode_bitshuffle_lz4

Array = NDArray[Any]

BITSHUFFLE = 32008
LZ4 = 2
_SCRATCH_BYTES = 1 << 20


def working_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type in which pixels stored as ``dtype`` are handed on: uint16, int16, uint32, int32 or float32.

    Raises
    ------
    ValueError
        If the type holds no numbers.
    """
    if dtype.kind == "f":
        return np.dtype(np.float32)
    if dtype.kind == "b":
        return np.dtype(np.uint16)
    if dtype.kind not in "iu":
        raise ValueError(f"pixels of type {dtype} are not numbers")
    size = min(4, max(2, dtype.itemsize))
    return np.dtype(f"{dtype.kind}{size}")


def convert(source: Array, out: Array) -> None:
    """Copy ``source`` into ``out``, other types clipped to what ``out`` can hold."""
    if source.dtype.kind in "iu" and source.dtype.itemsize > out.dtype.itemsize:
        limits = np.iinfo(out.dtype)
        np.copyto(out, np.clip(source, limits.min, limits.max), casting="unsafe")
    else:
        np.copyto(out, source, casting="unsafe")


class FrameReader:
    """Reads frames of a `Layout` into a panel stack. Buffers are made at the first read; not shared by threads."""

    def __init__(self, path: str, layout: Layout, pool: Hdf5Pool) -> None:
        self.path = path
        self.layout = layout
        self.pool = pool
        self._stack: Array | None = None
        self._frames: dict[int, Array] = {}
        self._scratch: NDArray[np.uint8] | None = None
        self._checked: set[tuple[str, str]] = set()
        self._raw: NDArray[np.uint8] = np.empty(0, dtype=np.uint8)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "layout": self.layout, "pool": self.pool}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], state["layout"], state["pool"])  # type: ignore[misc]

    def read(self, index: int) -> Array:
        """Return the panel stack of frame ``index``, in a buffer that the next read overwrites.

        Raises
        ------
        DataError
            If the frame cannot be read; names file and frame.
        """
        layout = self.layout
        if self._stack is None:
            self._stack = POOL.take(layout.stack_shape, working_dtype(layout.dtype))
            if not layout.is_direct:
                # padding is never written again
                self._stack.fill(0)
        stack = self._stack
        native = layout.dtype == stack.dtype and layout.dtype.isnative
        if layout.is_direct and native:
            self._read_part(layout.parts[0], index, stack.reshape(layout.parts[0].frame_shape))
            return stack
        arrays = []
        for number, part in enumerate(layout.parts):
            if number not in self._frames:
                self._frames[number] = POOL.take(part.frame_shape, layout.dtype.newbyteorder("="))
            self._read_part(part, index, self._frames[number])
            arrays.append(self._frames[number])
        if native:
            layout.gather(arrays, stack)
        elif layout.is_direct:
            convert(arrays[0].reshape(layout.stack_shape), stack)
        else:
            for part, array in zip(layout.parts, arrays, strict=True):
                for slot in part.slots:
                    pixels = slot.cut(array)
                    convert(pixels, stack[slot.panel, : pixels.shape[0], : pixels.shape[1]])
        return stack

    def release(self) -> None:
        """Let other sources have the buffers; the next read takes new ones."""
        self._stack = None
        self._frames.clear()

    def _read_part(self, part: Part, index: int, out: Array) -> None:
        segment, number = part.locate(index)
        try:
            dataset = self.pool.dataset(segment.file, segment.dataset, index)
        except DataError as error:
            raise DataError(f"{error.path}: {error.message}", self.path, index) from error
        if dataset.is_virtual:
            self._check_sources(segment.file, dataset, index)
        shape = tuple(int(s) for a, s in enumerate(dataset.shape) if a != part.frame_axis)
        if shape != part.frame_shape or not np.can_cast(dataset.dtype, out.dtype, "safe"):
            raise DataError(
                f"{segment.dataset} in {segment.file} holds frames of {shape} {dataset.dtype}, the first ones are "
                f"{part.frame_shape} {out.dtype}: the files do not belong together",
                self.path,
                index,
            )
        try:
            if self._read_chunk(dataset, part, number, out):
                return
            if part.frame_axis is None:
                dataset.read_direct(out)
            else:
                selection = tuple(number if a == part.frame_axis else slice(None) for a in range(len(dataset.shape)))
                dataset.read_direct(out, selection)
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(
                f"the frame's pixels cannot be read from {segment.dataset} in {segment.file} ({str(error)[:160]}): "
                "the file is damaged or cut short, copy it again or leave the frame out",
                self.path,
                index,
            ) from error

    def _check_sources(self, file: str, dataset: Any, index: int) -> None:
        """Raise a DataError if a source of a virtual dataset is missing: HDF5 would hand out fill values without a word."""
        key = (file, str(dataset.name))
        if key in self._checked:
            return
        for source in dataset.virtual_sources():
            if source.file_name == "." or "%" in source.file_name:
                continue
            where = Path(file).parent / source.file_name
            try:
                self.pool.dataset(str(where), source.dset_name, index)
            except DataError as error:
                raise DataError(f"a part of the frame is missing: {error.path}: {error.message}", self.path, index) from error
        self._checked.add(key)

    def _read_chunk(self, dataset: Any, part: Part, number: int, out: Array) -> bool:
        """Read a frame that is one bitshuffle-LZ4 chunk; False if it is not, and nothing was done.

        Raises
        ------
        ValueError
            If the chunk is corrupt.
        """
        chunks = dataset.chunks
        if chunks is None or part.frame_axis is None or dataset.is_virtual or out.dtype.byteorder == ">":
            return False
        if chunks[part.frame_axis] != 1 or any(
            c < s for a, (c, s) in enumerate(zip(chunks, dataset.shape, strict=True)) if a != part.frame_axis
        ):
            return False
        if chunks != tuple(1 if a == part.frame_axis else s for a, s in enumerate(dataset.shape)) or not dataset.dtype.isnative:
            return False
        if dataset.dtype != out.dtype or not _is_bitshuffle_lz4(dataset):
            return False
        offset = tuple(number if a == part.frame_axis else 0 for a in range(len(chunks)))
        info = dataset.id.get_chunk_info_by_coord(offset)
        if info.byte_offset is None or info.filter_mask != 0:
            return False
        if self._raw.size < info.size:
            self._raw = np.empty(int(info.size * 1.25) + 64, dtype=np.uint8)
        if self._scratch is None:
            self._scratch = np.empty(_SCRATCH_BYTES, dtype=np.uint8)
        raw = self._raw[: info.size]
        dataset.id.read_direct_chunk(offset, out=raw)
        flat = out.reshape(-1)
        octets = flat.view(np.uint8)
        words = octets[: octets.size // 8 * 8].view(np.uint64)
        code = decode_bitshuffle_lz4(raw, out.dtype.itemsize, octets, words, self._scratch)
        if code != OK:
            raise ValueError(f"the compressed chunk of {info.size} bytes is corrupt, code {code}")
        return True


def _is_bitshuffle_lz4(dataset: Any) -> bool:
    properties = dataset.id.get_create_plist()
    if properties.get_nfilters() != 1:
        return False
    code, _, options, _ = properties.get_filter(0)
    return bool(code == BITSHUFFLE and len(options) > 4 and options[4] == LZ4)
