"""Scaled observations of an unmerged MTZ of any program, by whole reflections and as few at a time as the file allows.

A file that is sorted by index, as those of xfelproc, AIMLESS, DIALS and XDS's converters are, is read in parts; any other is sorted
in memory, where only indices, batch, I and SIGI are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.geometry.miller import pack, to_asu

Singles = NDArray[np.float32]

LABELS = ("M/ISYM", "BATCH", "I", "SIGI")
DATA_OFFSET = 80
"""Bytes before the first row of an MTZ."""
ROWS_AT_ONCE = 1 << 19
OPERATORS = 256
"""M/ISYM is 256 M + ISYM."""


@dataclass(frozen=True)
class ScaledRows:
    """Observations: indices (n, 3) in the asymmetric unit, sorted; ISYM, batch, I, SIGI (n,). All have SIGI > 0."""

    hkl: Singles
    isym: Singles
    batch: Singles
    intensity: Singles
    sigma: Singles

    @classmethod
    def of(cls, columns: Singles) -> ScaledRows:
        """Take rows (n, 7) of h, k, l and LABELS, without those that have no value."""
        columns = columns[np.isfinite(columns[:, 5]) & (columns[:, 6] > 0)]
        parts = (np.ascontiguousarray(columns[:, i]) for i in range(3, 7))
        return cls(np.ascontiguousarray(columns[:, :3]), *parts)


@dataclass(frozen=True)
class ObservationFile:
    """An unmerged MTZ: what its header says of all, and where the columns are. The cell is that of the header, not of batches."""

    path: Path
    cell: tuple[float, float, float, float, float, float]
    group: gemmi.SpaceGroup
    wavelength: float
    title: str
    n_rows: int
    n_batches: int
    n_columns: int
    places: tuple[int, ...]

    @classmethod
    def open(cls, path: Path) -> ObservationFile:
        """Read the header.

        Raises
        ------
        DataError
            If the file is no unmerged MTZ with I and SIGI, or has no row or no space group.
        """
        try:
            mtz = gemmi.read_mtz_file(str(path), with_data=False)
        except (OSError, RuntimeError, ValueError) as error:
            raise DataError(f"cannot be read as MTZ: {error}", path) from error
        labels = mtz.column_labels()
        missing = [label for label in LABELS if label not in labels]
        if missing:
            raise DataError(
                f"not a scaled unmerged MTZ: it has no column {', '.join(missing)} (columns: {', '.join(labels)})", path
            )
        if mtz.spacegroup is None:
            raise DataError("the space group is not known: set it in the file's header", path)
        if not mtz.nreflections:
            raise DataError("it has no observation", path)
        a, b, c, alpha, beta, gamma = mtz.cell.parameters
        return cls(
            path,
            (a, b, c, alpha, beta, gamma),
            mtz.spacegroup,
            max(float(dataset.wavelength) for dataset in mtz.datasets),
            mtz.title.strip(),
            mtz.nreflections,
            len(mtz.batches),
            len(labels),
            (0, 1, 2, *(labels.index(label) for label in LABELS)),
        )

    @cached_property
    def _rows(self) -> NDArray[np.float32]:
        try:
            with self.path.open("rb") as file:
                small = file.read(9)[8] >> 4 == 4  # number format of the machine stamp: 4 is IEEE with the least byte first
            shape = (self.n_rows, self.n_columns)
            return np.memmap(self.path, dtype="<f4" if small else ">f4", mode="r", offset=DATA_OFFSET, shape=shape)
        except (OSError, ValueError) as error:
            raise DataError(f"cannot be read as MTZ: {error}", self.path) from error

    def _columns(self, first: int, last: int) -> Singles:
        return np.asarray(self._rows[first:last][:, self.places], dtype=np.float32)

    def rows(self) -> Iterator[ScaledRows]:
        """Yield all observations, by whole reflections, sorted by index.

        Raises
        ------
        DataError
            If the file is shorter than its header says.
        """
        if self._is_sorted():
            yield from self._in_parts()
        else:
            yield ScaledRows.of(self._sorted_in_memory())

    def _is_sorted(self) -> bool:
        last = np.zeros(0, dtype=np.int64)
        for first in range(0, self.n_rows, ROWS_AT_ONCE):
            hkl = np.rint(self._columns(first, first + ROWS_AT_ONCE)[:, :3]).astype(np.int32)
            keys = np.concatenate([last, pack(hkl)])
            if np.any(keys[1:] < keys[:-1]) or not np.array_equal(to_asu(hkl, self.group)[0], hkl):
                return False
            last = keys[-1:]
        return True

    def _in_parts(self) -> Iterator[ScaledRows]:
        waiting = np.zeros((0, 7), dtype=np.float32)
        for first in range(0, self.n_rows, ROWS_AT_ONCE):
            columns = np.concatenate([waiting, self._columns(first, first + ROWS_AT_ONCE)])
            columns[:, 3] %= OPERATORS
            # the last reflection may go on
            end = int(np.argmax(np.all(columns[:, :3] == columns[-1, :3], axis=1)))
            yield ScaledRows.of(columns[:end])
            waiting = columns[end:]
        yield ScaledRows.of(waiting)

    def _sorted_in_memory(self) -> Singles:
        columns = self._columns(0, self.n_rows)
        columns[:, 3] %= OPERATORS
        hkl = np.rint(columns[:, :3]).astype(np.int32)
        reduced, isym = to_asu(hkl, self.group)
        moved = np.any(reduced != hkl, axis=1) | (columns[:, 3] == 0)
        columns[moved, 3] = isym[moved]
        columns[:, :3] = reduced
        return columns[np.argsort(pack(reduced), kind="stable")]
