"""Suspects: units whose worker died, the frames it was at, and how often. Open cases only: a unit that is published has none."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xfelproc.io.atomic import make_folder
from xfelproc.io.inflight import InFlight, is_alive, read_inflight
from xfelproc.models.reasons import LEFT_OUT
from xfelproc.run.directory import RunDirectory
from xfelproc.run.journal import ended

Quarantine = tuple[tuple[int, str], ...]

ENDING = 5.0
"""Seconds that workers of a dispatcher that was killed get to end."""
DEATHS = 2
"""A frame at which so many workers died is left out."""


@dataclass(frozen=True)
class Case:
    """A frame (``row`` of a unit; -1: between frames) at which workers died."""

    unit: int
    row: int
    deaths: int
    how: str

    @property
    def reason(self) -> str:
        """What is said of the frame once it is left out."""
        return f"its worker {self.how} {LEFT_OUT}"


@dataclass
class Cases:
    """The open cases of a stage.

    Parameters
    ----------
    known
        Those of earlier starts.
    save
        Called with all open cases after each change.
    """

    known: Iterable[Case] = ()
    save: Callable[[list[Case]], None] = lambda cases: None
    _units: dict[int, dict[int, Case]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for case in self.known:
            self._units.setdefault(case.unit, {})[case.row] = case

    def __contains__(self, unit: int) -> bool:
        return unit in self._units

    def units(self) -> list[int]:
        """Return the units with a case, in order."""
        return sorted(self._units)

    def add(self, unit: int, row: int, how: str) -> Case:
        """Count one more death."""
        rows = self._units.setdefault(unit, {})
        case = rows[row] = Case(unit, row, rows[row].deaths + 1 if row in rows else 1, how)
        self._save()
        return case

    def clear(self, unit: int) -> None:
        """Close the cases of a unit: it is published."""
        if self._units.pop(unit, None) is not None:
            self._save()

    def left_out(self, unit: int) -> list[Case]:
        """Return the frames of a unit that are in quarantine."""
        return [case for row, case in sorted(self._units.get(unit, {}).items()) if row >= 0 and case.deaths >= DEATHS]

    def quarantine(self, unit: int) -> Quarantine:
        """Return the rows of a unit that are not to be touched, with the reasons."""
        return tuple((case.row, case.reason) for case in self.left_out(unit))

    def _save(self) -> None:
        self.save([case for rows in self._units.values() for case in rows.values()])


class SuspectFile:
    """``gather/suspects.json``: the open cases of all stages, kept across starts.

    Parameters
    ----------
    directory
        The run; only for the holder of its lock.
    """

    NAME = "suspects.json"

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory

    def collect(self) -> None:
        """Turn the in-flight records of a run that ended without a word into cases; each counts once."""
        run = self._directory.path
        if ended(run):
            return
        rows = self._read()
        known = {(row["stage"], row["unit"], row["row"], row["lineage"]): row for row in rows}
        for record in _left_behind(run):
            key = (record.stage, record.unit, record.row, record.lineage)
            row = known.get(key)
            if row is None:
                row = known[key] = {**dict(zip(("stage", "unit", "row", "lineage"), key, strict=True)), "deaths": 0}
                rows.append(row)
            if row.get("at") != record.at:  # else counted by a start that died before it removed the record
                row |= {"deaths": row["deaths"] + 1, "how": "died", "at": record.at}
        if rows:
            self._write(rows)

    def cases(self, stage: str, units: Sequence[int], lineage: Callable[[int], str]) -> Cases:
        """Return the open cases of a stage among the units that are to do; cases of another lineage are closed."""
        wanted = set(units)
        lineages: dict[int, str] = {}

        def short(unit: int) -> str:
            return lineages.setdefault(unit, lineage(unit)[:16])

        rows = [row for row in self._read() if row["stage"] == stage]
        good = [row for row in rows if row["unit"] in wanted and row["lineage"] == short(row["unit"])]
        known = [Case(row["unit"], row["row"], row["deaths"], row["how"]) for row in good]

        def save(cases: list[Case]) -> None:
            rows = [row for row in self._read() if row["stage"] != stage]
            mine = [{"stage": stage, **vars(case), "lineage": short(case.unit)} for case in cases]
            self._write(rows + mine)

        if len(good) < len(rows):
            save(known)
        return Cases(known, save)

    def _read(self) -> list[dict[str, Any]]:
        content = self._directory.read_json(self.NAME)
        return [] if content is None else list(content["suspects"])

    def _write(self, rows: list[dict[str, Any]]) -> None:
        make_folder(self._directory.gather)
        self._directory.write_json(self.NAME, {"suspects": rows})


def _left_behind(run: Path) -> list[InFlight]:
    """Return the records of dead workers.

    Those of this host that are still about see in a moment that their dispatcher is gone, and take the blame off their frames.
    """
    end = time.monotonic() + ENDING
    while any(r.host == socket.gethostname() and is_alive(r.worker) for r in read_inflight(run)) and time.monotonic() < end:
        time.sleep(0.05)
    return read_inflight(run)
