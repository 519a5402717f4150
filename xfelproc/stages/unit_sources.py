"""Sources of the unit a worker is at: opened lazily, and checked against what was planned."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.io.manifest import UNSEEN, State, UnitInput, file_state
from xfelproc.io.manifest_reader import ManifestReader
from xfelproc.io.sources.base import FrameSource
from xfelproc.io.sources.settings import SourceSettings

Opener = Callable[[str, SourceSettings], FrameSource]

OPEN_SOURCES = 8


class UnitSources:
    """What a worker has of the manifest and has opened. `begin` a unit, then ask for its sources by their number."""

    def __init__(self, manifest: Path, opener: Opener, settings: SourceSettings) -> None:
        self._manifest = ManifestReader(manifest)
        self._opener, self._settings = opener, settings
        self._open: OrderedDict[int, tuple[FrameSource, State]] = OrderedDict()
        self._states: dict[int, State] = {}
        self._given: UnitInput | None = None

    def close(self) -> None:
        """Release files."""
        for source, _ in self._open.values():
            source.close()
        self._open.clear()
        self._manifest.close()

    @property
    def given(self) -> UnitInput:
        """Input of the unit at hand."""
        assert self._given is not None, "no unit was begun"
        return self._given

    def begin(self, unit: int) -> UnitInput:
        """Read what a unit is made of.

        Raises
        ------
        DataError
            If the manifest is damaged.
        """
        self._given, self._states = self._manifest.unit_input(unit), {}
        return self._given

    def path(self, number: int) -> str:
        """Return the path of a source."""
        return self.given.sources.path(self.given.row(number))

    def source(self, number: int) -> FrameSource:
        """Return a source of the unit; the least recently used ones are closed.

        Raises
        ------
        DataError
            If it cannot be opened, is not what it was when the run was planned, or was taken for one frame and holds more.
        """
        row = self.given.row(number)
        problem = self.given.sources.errors.get(row)
        if problem is not None:
            raise DataError(problem)
        known = self._open.get(number)
        unseen = int(self.given.sources.table["size"][row]) == UNSEEN
        if known is not None and not unseen:
            self._open.move_to_end(number)
            return known[0]
        path = Path(self.path(number))
        state = self._look(row, path, unseen)
        if known is None or known[1] != state:
            known = self._opener(str(path), self._settings), state
            if unseen and known[0].n_frames != 1:
                raise DataError(
                    f"holds {known[0].n_frames} frames, and was taken for one as the files beside it: give it a job of its own",
                    path,
                )
            self._open[number] = known
            if len(self._open) > OPEN_SOURCES:
                self._open.popitem(last=False)[1][0].close()
        self._open.move_to_end(number)
        return known[0]

    def _look(self, row: int, path: Path, unseen: bool) -> State:
        """Return size and time of a source; see that they are as planned, or keep them for the shard."""
        state = file_state(path)
        if unseen:
            self._states[row] = state
        if state[0] < 0:
            raise DataError("cannot be opened: it is no longer there, or may not be read", path)
        table = self.given.sources.table
        if not unseen and state != (int(table["size"][row]), int(table["mtime"][row])):
            raise DataError("has changed since the run was planned: run the same command again", path)
        return state

    def states(self) -> NDArray[np.int64]:
        """Return size and time, (n, 2), of the unit's sources that were not looked at before: as they were when they were opened,
        or as they are now where they were not.
        """
        given = self.given
        found = [self._states.get(row) or file_state(given.sources.path(row)) for row in map(int, given.unseen)]
        return np.array(found, dtype=np.int64).reshape(-1, 2)
