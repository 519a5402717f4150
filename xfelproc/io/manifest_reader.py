"""The manifest as a worker sees it: a unit's rows, whatever the length of the whole."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.io.manifest import Sources, SourceTable, UnitInput
from xfelproc.io.names import FileNames, Texts


class ManifestReader:
    """An open manifest. Opening and reading a unit cost the same for ten frames and for ten million.

    Parameters
    ----------
    path
        The file, as `io.manifest.write_manifest` wrote it.

    Raises
    ------
    DataError
        If it is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = h5py.File(path, "r", locking=False)
            self._errors: NDArray[np.int64] = self._file["errors/source"][()]
        except (OSError, KeyError, RuntimeError) as error:
            raise self._damaged(error) from error

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def _damaged(self, error: Exception) -> DataError:
        return DataError(f"the manifest cannot be read ({error}): run the same command again", self.path)

    def unit_input(self, index: int) -> UnitInput:
        """Return what a unit is made of.

        Raises
        ------
        DataError
            If the file is damaged.
        """
        try:
            start, stop = (int(v) for v in self._file["offsets"][index : index + 2])
            frame_source, frame_index = self._file["frame_source"][start:stop], self._file["frame_index"][start:stop]
            numbers = np.unique(frame_source).astype(np.int64)
            return UnitInput(index, frame_source, frame_index, numbers, self._sources(numbers))
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            raise self._damaged(error) from error

    def _sources(self, numbers: NDArray[np.int64]) -> Sources:
        table = SourceTable(None, **{c.name: self._rows(f"sources/{c.name}", numbers) for c in SourceTable.SCHEMA})
        wanted = np.flatnonzero(np.isin(self._errors, numbers))
        reasons = self._texts("errors/reason", wanted)
        rows = np.searchsorted(numbers, self._errors[wanted])
        return Sources(self._names(numbers), table, {int(row): reasons[i].decode() for i, row in enumerate(rows)})

    def _names(self, numbers: NDArray[np.int64]) -> FileNames:
        templates, template = np.unique(self._rows("names/template", numbers), return_inverse=True)
        folders, folder = np.unique(self._rows("names/template_folder", templates), return_inverse=True)
        return FileNames(
            folders=self._texts("names/folders", folders),
            template_folder=folder.astype(np.int32),
            beginnings=self._texts("names/beginnings", templates),
            endings=self._texts("names/endings", templates),
            template=template.astype(np.int32),
            middles=self._texts("names/middles", numbers),
        )

    def _rows(self, name: str, rows: NDArray[Any]) -> NDArray[Any]:
        """Return ascending rows of a dataset: one read for each run of neighbours."""
        dataset = self._file[name]
        parts = [dataset[first : last + 1] for first, last in _runs(rows)]
        return np.concatenate(parts) if parts else np.empty(0, dtype=dataset.dtype)

    def _texts(self, name: str, rows: NDArray[Any]) -> Texts:
        ends, text = self._file[f"{name}_ends"], self._file[f"{name}_text"]
        strings: list[bytes] = []
        for first, last in _runs(rows):
            part = ends[max(0, first - 1) : last + 1]
            edges = np.concatenate([[0], part]) if first == 0 else part
            content = text[int(edges[0]) : int(edges[-1])].tobytes()
            edges = edges - edges[0]
            strings += [content[a:b] for a, b in pairwise(edges.tolist())]
        return Texts.of(strings)


def _runs(rows: NDArray[Any]) -> list[tuple[int, int]]:
    """Return first and last of each run of consecutive numbers."""
    if not len(rows):
        return []
    breaks = np.flatnonzero(np.diff(rows) != 1)
    return list(zip(rows[np.r_[0, breaks + 1]].tolist(), rows[np.r_[breaks, len(rows) - 1]].tolist(), strict=True))
