"""Unmerged MTZ files written in pieces: the observations need never be in memory together.

The file is a preamble that says where the header begins, the observations row by row, and the header. gemmi makes the header: of
a file whose rows are those with the smallest and the largest value of each column, so that the ranges it states are those of all
rows. What is ours is the number of rows, the list of batches, and putting the pieces together. The format is described in the
CCP4 documentation (``mtzformat``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import islice

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.geometry.cells import b_matrix
from xfelproc.io.exchange.mtz import UNMERGED_COLUMNS, BatchModel, MtzHeader, batch_header, new_mtz
from xfelproc.kernels.unmerged import N_COLUMNS, extremes
from xfelproc.models.conventions import ReflectionFlag
from xfelproc.models.tables import UnmergedTable

Rows = NDArray[np.float32]

BATCH_COLUMN = 4
PREAMBLE_WORDS = 20
LINE = 80
BATCHES_AT_ONCE = 1000
ROWS_AT_ONCE = 1 << 15


def unmerged_rows(unmerged: UnmergedTable) -> Rows:
    """Return the rows (n, 15) of the file for some observations, outliers left out, in their order.

    I and SIGI are full intensities on the common scale, so that their means with 1/SIGI² are those of the merged file.
    SCALEUSED is the scale they were divided by, FRACTIONCALC the partiality, LP the polarisation factor: all are applied.
    The batch of lattice n (from 0) is n + 1.
    """
    rows = unmerged.select(unmerged["flags"] & int(ReflectionFlag.OUTLIER) == 0)
    columns = [rows["hkl_asu"][:, i] for i in range(3)]
    columns += [rows["isym"], rows["lattice"] + 1, rows["intensity"], rows["sigma"], rows["scale"], rows["partiality"]]
    columns += [rows["fast"], rows["slow"], rows["polarization"], rows["excitation"], rows["panel"], rows["flags"]]
    return np.column_stack([c.astype(np.float32) for c in columns])


def unmerged_pieces(n_rows: int, chunks: Iterable[Rows], batches: Iterable[BatchModel], header: MtzHeader) -> Iterator[bytes]:
    """Yield the bytes of an unmerged MTZ.

    Parameters
    ----------
    n_rows
        Rows in all chunks.
    chunks
        Rows from `unmerged_rows`, sorted by index, then batch.
    batches
        One model for each lattice of the run, in order; only those with rows get a batch header.
    header
        Cell, space group, title, notes.

    Raises
    ------
    DataError
        If there is no row, or their number is another.
    """
    if not n_rows:
        raise DataError("no observation was merged, so there is no unmerged MTZ to write")
    yield _preamble(n_rows)
    seen = _Seen(header)
    for chunk in _small(chunks):
        plain = np.ascontiguousarray(chunk, dtype="<f4")
        yield plain.tobytes()
        seen.add(plain)
    if seen.n != n_rows:
        raise DataError(f"an unmerged MTZ of {n_rows} rows was begun, but there are {seen.n}")
    yield from _header_pieces(n_rows, seen.rows, seen.batches, batches, header)


def _small(chunks: Iterable[Rows]) -> Iterator[Rows]:
    """Yield the chunks in parts of which copies do not matter."""
    for chunk in chunks:
        for first in range(0, len(chunk), ROWS_AT_ONCE):
            yield chunk[first : first + ROWS_AT_ONCE]


def _preamble(n_rows: int) -> bytes:
    """Return the first 20 words: the header's place (in words, from 1), as 64 bits where 32 do not hold it."""
    place = N_COLUMNS * n_rows + PREAMBLE_WORDS + 1
    small = place <= np.iinfo(np.int32).max
    content = b"MTZ " + struct.pack("<iiq", place if small else -1, 0x4144, 0 if small else place)
    return content.ljust(4 * PREAMBLE_WORDS, b"\0")


class _Seen:
    """Rows with the smallest and largest value of each column and of 1/d², and which batches there are."""

    def __init__(self, header: MtzHeader) -> None:
        self._b = np.asarray(b_matrix(header.cell), dtype=np.float64)
        self._low, self._high = np.full(N_COLUMNS + 1, np.inf), np.full(N_COLUMNS + 1, -np.inf)
        self._lowest, self._highest = (np.zeros((N_COLUMNS + 1, N_COLUMNS), dtype=np.float32) for _ in range(2))
        self._present = np.zeros(1, dtype=bool)
        self.n = 0

    def add(self, rows: Rows) -> None:
        if not len(rows):
            return
        last = int(rows[:, BATCH_COLUMN].max())
        if last >= len(self._present):
            self._present = np.append(self._present, np.zeros(last, dtype=bool))
        extremes(rows, self._b, self._low, self._high, self._lowest, self._highest, self._present)
        self.n += len(rows)

    @property
    def rows(self) -> Rows:
        return np.unique(np.concatenate([self._lowest, self._highest]), axis=0)

    @property
    def batches(self) -> NDArray[np.int64]:
        return np.flatnonzero(self._present)


def _with_columns(header: MtzHeader, rows: Rows) -> gemmi.Mtz:
    mtz = new_mtz(header)
    for label, kind in UNMERGED_COLUMNS:
        mtz.add_column(label, kind, dataset_id=1)
    mtz.set_data(rows)
    mtz.sort_order = [1, 2, 3, 4, 5]
    return mtz


def _header_bytes(mtz: gemmi.Mtz, n_rows: int) -> bytes:
    return bytes(mtz.write_to_bytes())[4 * (N_COLUMNS * n_rows + PREAMBLE_WORDS) :]


def _header_pieces(
    n_rows: int, rows: Rows, numbers: NDArray[np.int64], batches: Iterable[BatchModel], header: MtzHeader
) -> Iterator[bytes]:
    text = _header_bytes(_with_columns(header, rows), len(rows))
    lines = [text[i : i + LINE] for i in range(0, len(text), LINE)]
    end = next(i for i, line in enumerate(lines) if line.startswith(b"END "))
    count = next(i for i, line in enumerate(lines) if line.startswith(b"NCOL "))
    lines[count] = f"NCOL {N_COLUMNS:8d} {n_rows:12d} {len(numbers):8d}".ljust(LINE).encode()
    yield b"".join(lines[:end])
    yield b"".join(_batch_lines(numbers))
    history = [line for line in lines[end + 1 :] if not line.startswith(b"MTZENDOFHEADERS")]
    yield b"".join([lines[end], *history, b"MTZBATS".ljust(LINE)])
    yield from _batch_headers(numbers, batches, header)
    yield lines[-1]


def _batch_lines(numbers: NDArray[np.int64]) -> Iterator[bytes]:
    """Yield the lines that list the batches: 12 each, fewer where the numbers are long."""
    width = max(6, len(str(int(numbers[-1]))) + 1)
    each = min(12, (LINE - 6) // width)
    for i in range(0, len(numbers), each):
        yield ("BATCH " + "".join(f"{n:{width}d}" for n in numbers[i : i + each].tolist())).ljust(LINE).encode()


def _batch_headers(numbers: NDArray[np.int64], batches: Iterable[BatchModel], header: MtzHeader) -> Iterator[bytes]:
    wanted = set((numbers - 1).tolist())
    chosen = ((n, model) for n, model in enumerate(batches) if n in wanted)
    empty = np.zeros((1, N_COLUMNS), dtype=np.float32)
    while some := list(islice(chosen, BATCHES_AT_ONCE)):
        mtz = _with_columns(header, empty)
        for number, model in some:
            mtz.batches.append(batch_header(number, model))
        content = _header_bytes(mtz, 1)
        begin = content.index(b"MTZBATS ") + LINE
        yield content[begin : content.rindex(b"MTZENDOFHEADERS")]


def unmerged_mtz(unmerged: UnmergedTable, batches: Iterable[BatchModel], header: MtzHeader) -> bytes:
    """Return the bytes of an unmerged MTZ of a table in memory; see `unmerged_rows` for the columns.

    Raises
    ------
    DataError
        If there is no observation.
    """
    rows = unmerged_rows(unmerged)
    return b"".join(unmerged_pieces(len(rows), [rows], batches, header))
