from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from xfelproc.io.inflight import InFlightRecord, clear_inflight, forgive, read_inflight, record_of, record_path

WORKER = """
import sys, time
from pathlib import Path
from xfelproc.io.inflight import forgive_on_sigterm, record_of
forgive_on_sigterm()
record_of(Path(sys.argv[1])).mark("process", 3, 1, 10.0, "abc")
print("ready", flush=True)
time.sleep(60)
"""


def test_record_says_where_its_worker_is(tmp_path: Path) -> None:
    record = InFlightRecord(tmp_path)
    record.mark("a-much-longer-name-of-a-stage", 123456, 499, 1000.0, "0123456789abcdef0123")
    record.mark("process", 7, 2, 2000.5, "0123456789abcdef0123")
    (found,) = read_inflight(tmp_path)
    assert (found.host, found.worker) == (os.uname().nodename, os.getpid())
    assert (found.stage, found.unit, found.row, found.since, found.lineage) == ("process", 7, 2, 2000.5, "0123456789abcdef")
    assert found.at > found.since
    record.idle()
    assert read_inflight(tmp_path) == []
    record.close()


def test_what_is_no_record_is_left_out(tmp_path: Path) -> None:
    assert read_inflight(tmp_path) == []
    folder = record_path(tmp_path, 1).parent
    folder.mkdir(parents=True)
    (folder / "host-12").write_text("")
    (folder / "host-13").write_text("process 1 2")
    (folder / "host-x").write_text("process 1 2 3.0 4.0 ab")
    (folder / "far-away-14").write_text("process 1 2 3.0 4.0 ab")
    assert [(r.host, r.worker, r.unit) for r in read_inflight(tmp_path)] == [("far-away", 14, 1)]


def test_records_of_living_processes_are_kept(tmp_path: Path) -> None:
    folder = record_path(tmp_path, 1).parent
    folder.mkdir(parents=True)
    for path in (record_path(tmp_path, 5), record_path(tmp_path, 6), folder / "far-away-5"):
        path.write_text("process 1 2 3.0 4.0 ab")
    clear_inflight(tmp_path, keep={5})
    assert list(folder.iterdir()) == [record_path(tmp_path, 5)]
    clear_inflight(tmp_path)
    assert list(folder.iterdir()) == []


def test_a_cleared_record_is_made_again(tmp_path: Path) -> None:
    record_of(tmp_path).mark("process", 1, 1, 1.0, "ab")
    clear_inflight(tmp_path)
    record_of(tmp_path).mark("process", 2, 1, 1.0, "ab")
    assert [r.unit for r in read_inflight(tmp_path)] == [2]
    forgive()
    assert read_inflight(tmp_path) == []


def test_a_worker_of_many_runs_keeps_one_record_open(tmp_path: Path) -> None:
    first = record_of(tmp_path / "a")
    second = record_of(tmp_path / "b")
    first.mark("process", 1, 1, 1.0, "ab")  # by who still has it: not into a file that got its descriptor
    assert read_inflight(tmp_path / "a") == []
    second.mark("process", 2, 1, 1.0, "ab")
    assert [r.unit for r in read_inflight(tmp_path / "b")] == [2]
    opened = len(list(Path("/dev/fd").iterdir()))
    for i in range(20):
        record_of(tmp_path / f"run{i}").idle()
    assert len(list(Path("/dev/fd").iterdir())) == opened


def test_sigterm_puts_no_blame_on_a_frame_and_sigusr1_is_ignored(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR1)
    assert [r.unit for r in read_inflight(tmp_path)] == [3]
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == -signal.SIGTERM
    assert read_inflight(tmp_path) == []
    process.stdout.close()
