from __future__ import annotations

import json
import subprocess
import threading
import time
from pathlib import Path

import pytest

from xfelproc.io.inflight import IDLE, record_path
from xfelproc.run.directory import RunDirectory
from xfelproc.run.suspects import Cases, SuspectFile

LINEAGE = "0123456789abcdef"


BEYOND = 4194305
"""A process number that cannot be."""


def leave(run: Path, worker: int, unit: int, row: int, at: float = 1.0, stage: str = "process") -> None:
    path = record_path(run, BEYOND + worker)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{stage} {unit} {row} 0.5 {at} {LINEAGE}\n")


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run that began and never said how it ended."""
    (tmp_path / "journal.jsonl").write_text('{"event": "start"}\n' + '{"event": "unit"}\n' * 5000 + '{"event": "un')
    return RunDirectory(tmp_path)


def lineage(unit: int) -> str:
    return LINEAGE + "0123"


def test_second_death_puts_in_quarantine() -> None:
    saved: list[int] = []
    cases = Cases(save=lambda found: saved.append(len(found)))
    assert cases.add(4, 2, "died").deaths == 1
    assert cases.quarantine(4) == ()
    cases.add(4, 3, "died")
    cases.add(4, 2, "took more than 2 s")
    assert cases.quarantine(4) == ((2, "its worker took more than 2 s twice at this frame: left out"),)
    assert 4 in cases
    cases.add(4, -1, "died")
    cases.add(4, -1, "died")
    assert [case.row for case in cases.left_out(4)] == [2]
    cases.clear(4)
    assert 4 not in cases
    assert saved == [1, 2, 2, 3, 3, 0]


def test_records_of_a_dead_run_become_cases_once(run: RunDirectory) -> None:
    leave(run.path, 10, 3, 7)
    leave(run.path, 11, 5, -1)
    SuspectFile(run).collect()
    SuspectFile(run).collect()  # a start that died before it removed the records
    cases = SuspectFile(run).cases("process", range(9), lineage)
    assert cases.units() == [3, 5]
    assert cases.left_out(3) == []
    leave(run.path, 12, 3, 7, at=2.0)
    record_path(run.path, BEYOND + 10).unlink()
    SuspectFile(run).collect()
    assert [case.row for case in SuspectFile(run).cases("process", range(9), lineage).left_out(3)] == [7]


def test_living_worker_has_a_moment_to_say_that_it_is_innocent(run: RunDirectory) -> None:
    process = subprocess.Popen(["sleep", "60"])
    leave(run.path, process.pid - BEYOND, 3, 7)

    def ends() -> None:
        time.sleep(0.3)
        record_path(run.path, process.pid).write_text(IDLE)
        process.kill()
        process.wait()

    thread = threading.Thread(target=ends)
    thread.start()
    SuspectFile(run).collect()
    thread.join()
    assert not (run.gather / "suspects.json").exists()


@pytest.mark.parametrize("last", ["end", "stopped"])
def test_known_end_makes_no_suspects(run: RunDirectory, last: str) -> None:
    with (run.path / "journal.jsonl").open("a") as stream:
        stream.write(f'\n{{"event": "{last}"}}\n')
    leave(run.path, 10, 3, 7)
    SuspectFile(run).collect()
    assert not (run.gather / "suspects.json").exists()


def test_cases_of_published_units_and_other_lineages_are_closed(run: RunDirectory) -> None:
    for worker, unit in enumerate((1, 2, 3)):
        leave(run.path, worker, unit, 0)
    leave(run.path, 9, 1, -1, stage="merge:0")
    SuspectFile(run).collect()
    cases = SuspectFile(run).cases("process", [2, 3], lambda unit: lineage(unit) if unit == 2 else "another")
    assert cases.units() == [2]
    kept = json.loads((run.gather / "suspects.json").read_text())["suspects"]
    assert [(row["stage"], row["unit"]) for row in kept] == [("merge:0", 1), ("process", 2)]
