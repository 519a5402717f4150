"""Suspects in a process of their own; what becomes of them is in tests/integration."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from xfelproc.io.inflight import InFlight, read_record, record_path
from xfelproc.run import isolation
from xfelproc.run.isolation import IsolatedUnits
from xfelproc.stages.execute import UnitTask

CHILD = """
import sys, time
from pathlib import Path
from xfelproc.io.inflight import InFlightRecord
record, begun = InFlightRecord(Path(sys.argv[1])), time.time()
for row in range(int(sys.argv[2])):
    record.mark("process", 3, row, begun, "ab")
    time.sleep(0.1)
record.mark("process", 3, -1, begun, "ab")
time.sleep(float(sys.argv[3]))
record.idle()
time.sleep(0.2)
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "POLL", 0.02)


def watch(run: Path, rows: int, publishing: float, monkeypatch: pytest.MonkeyPatch) -> tuple[bool, InFlight | None]:
    """Return whether a unit of frames of 0.1 s was killed, at 1.5 s without a frame, and where it was then."""
    monkeypatch.setattr(isolation, "START", 1.5)
    command = [sys.executable, "-c", CHILD, str(run), str(rows), str(publishing)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE)
    record = record_path(run, child.pid)
    while not record.exists():  # its start on a busy machine is not what is measured
        assert child.poll() is None
        time.sleep(0.01)
    with child:
        hung = IsolatedUnits(run, lambda unit, quarantine: UnitTask(b"", "", unit))._watch(child, UnitTask(b"", "", 3), record, 1.5)
    return hung, read_record(record)


def test_a_long_unit_is_not_late_when_it_publishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert watch(tmp_path, 30, 0.3, monkeypatch) == (False, None)


def test_a_unit_that_never_publishes_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hung, at = watch(tmp_path, 1, 600.0, monkeypatch)
    assert hung
    assert at is not None
    assert at.row == -1
