"""The journal: append-only JSON lines with one writer. It tells the story; what is done, the shards say."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from xfelproc.io.atomic import output_error
from xfelproc.io.shards import read_header

SYNC_EVERY = 5.0


class Journal:
    """Writer of ``journal.jsonl``; only the holder of the run's lock makes one. ``listener`` is told every event, too."""

    def __init__(self, run: Path, listener: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.path = run / "journal.jsonl"
        self._listener = listener
        try:
            self._stream = self.path.open("ab")
            if self._stream.tell() and not _ends_in_newline(self.path):
                self._stream.write(b"\n")  # a writer was killed in the middle of a line
        except OSError as error:
            raise output_error(error, self.path) from error
        self._synced = time.monotonic()

    def write(self, event: str, **details: Any) -> None:
        """Append one event.

        Raises
        ------
        OutputError
            If the disk is full.
        """
        content = {"time": round(time.time(), 3), "event": event, **details}
        line = json.dumps(content, default=str)
        try:
            self._stream.write(line.encode() + b"\n")
            self._stream.flush()
            if time.monotonic() - self._synced > SYNC_EVERY:
                os.fsync(self._stream.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise output_error(error, self.path) from error
        if self._listener is not None:
            self._listener(content)

    def close(self) -> None:
        """Close the file; what could not be written stays unwritten."""
        try:
            self._stream.close()
        except OSError:
            return


def _ends_in_newline(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"


class JournalTail:
    """Reader of a journal that others may be writing: each call of `poll` returns what is new."""

    def __init__(self, run: Path) -> None:
        self.path = run / "journal.jsonl"
        self._offset = 0

    def poll(self) -> Iterator[dict[str, Any]]:
        """Yield the events since the last call; a line still being written is left for the next one, damaged ones are left out."""
        if not self.path.exists():
            return
        with self.path.open("rb") as stream:
            stream.seek(self._offset)
            for line in stream:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if isinstance(event, dict) and "event" in event:
                    yield event


def read_journal(run: Path) -> Iterator[dict[str, Any]]:
    """Yield the events; half-written lines are left out."""
    yield from JournalTail(run).poll()


def ended(run: Path) -> bool:
    """Return whether the last run here told of its end: it was done, or stopped for a reason it knew (``known``)."""
    path, tail = run / "journal.jsonl", 1 << 16
    if not path.exists():
        return True
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - tail))
        lines = stream.read().splitlines()
    for line in reversed(lines):
        try:
            content = json.loads(line)
            event = content["event"]
        except (ValueError, KeyError, TypeError):
            continue
        if event in ("start", "end", "stopped"):
            return bool(event != "start" and content.get("known", True))
    return False  # units all over the end of it


def unit_events(run: Path) -> Iterator[dict[str, Any]]:
    """Yield the ``unit`` events that the shards prove, by stage and unit: the journal made anew."""
    for path in sorted((run / "shards").rglob("*.h5")):
        header = read_header(path)
        if header is not None:
            stage = path.relative_to(run / "shards").parts[0]
            yield {"event": "unit", "stage": stage, "unit": header.unit, "counts": header.counts, "seconds": header.seconds}


def rebuild(run: Path) -> int:
    """Append to the journal what the shards prove and it does not tell; return how many units."""
    told = {(e.get("stage"), e.get("unit")) for e in read_journal(run) if e["event"] == "unit"}
    journal, added = Journal(run), 0
    for event in unit_events(run):
        if (event["stage"], event["unit"]) not in told:
            details = {k: v for k, v in event.items() if k != "event"}
            journal.write("unit", **details, rebuilt=True)
            added += 1
    journal.close()
    return added
