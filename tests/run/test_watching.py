from __future__ import annotations

import io
import json
import os
import socket
from pathlib import Path

import pytest
from rich.console import Console

from tests.run.test_run import job, run
from xfelproc.cli.status import lines_of, one_line, panel
from xfelproc.drivers.slurm import QueueState
from xfelproc.io.shards import shard_path
from xfelproc.run import watching
from xfelproc.run.watching import Watch, read_workers


@pytest.fixture
def done(tmp_path: Path) -> Path:
    run(job(tmp_path, ["hit", "blank", "truncated", *["hit"] * 9]), tmp_path / "out")
    return tmp_path / "out"


def watch(folder: Path) -> Watch:
    found = Watch(folder)
    found.refresh()
    return found


def test_a_run_that_is_done(done: Path) -> None:
    status = watch(done).collect()
    assert status["state"] == "done"
    assert status["frames"] == {"done": 12, "total": 12}
    assert [(text[-22:], count) for text, count in status["failures"].items()] == [("the frame is truncated", 1)]
    assert status["seconds_left"] is None
    json.dumps(status)
    text = "\n".join(lines_of(status))
    assert "12 of 12 frames in 3 of 3 units" in text
    assert "11 hits" not in text


def test_shards_of_another_version_are_explained(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = json.loads((done / "lineage.json").read_text())
    record["versions"]["xfelproc"] = "0.0.1"
    (done / "lineage.json").write_text(json.dumps(record))
    monkeypatch.setattr("xfelproc.io.shards.SCHEMA", "other")
    status = watch(done).collect()
    assert status["units"] == {"done": 0, "total": 3}
    assert status["state"] == "stopped"
    text = "\n".join(lines_of(status))
    assert "3 of 3 units are there in another format" in text
    assert "xfelproc: 0.0.1 -> " in text


def test_a_running_run_is_followed_by_its_journal(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a dispatcher is at work no shard is opened: it has counted them itself."""
    journal = (done / "journal.jsonl").read_text().splitlines(keepends=True)
    units = [number for number, line in enumerate(journal) if '"unit"' in line and '"counts"' in line]
    monkeypatch.setattr(watching, "holder", lambda path: {"host": "node1", "pid": 12})
    monkeypatch.setattr("xfelproc.run.progress.inspect_shard", None)
    (done / "journal.jsonl").write_text("".join(journal[: units[1]]))
    seen = Watch(done)
    seen.refresh()
    assert seen.state() == "running"
    assert seen.progress.frames == 4
    with (done / "journal.jsonl").open("a") as stream:
        stream.writelines(journal[units[1] :])
    seen.refresh()
    assert seen.progress.frames == 12
    monkeypatch.setattr(watching, "holder", lambda path: None)
    monkeypatch.setattr("xfelproc.run.progress.inspect_shard", lambda path: pytest.fail("read again"))
    seen._looked = True
    seen.refresh()
    assert seen.state() == "done"


def test_workers_and_where_they_are(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = done / "logs" / "inflight"
    (folder / f"{socket.gethostname()}-{os.getpid()}").write_text("process 2 1 1000.000 1001.000 abc\n")
    (folder / f"{socket.gethostname()}-4194305").write_text("process 1 0 900.000 905.000 abc\n")  # nobody has this number
    (folder / "node-17-55").write_text("merge:0 3 -1 950.000 950.000 -\n")
    (folder / "node-17-56").write_text("- -1 -1 0 0 -\n")
    workers = read_workers(done)
    assert [(w.host, w.pid, w.unit, w.alive) for w in workers] == [
        (socket.gethostname(), 4194305, 1, False),
        ("node-17", 55, 3, None),
        (socket.gethostname(), os.getpid(), 2, True),
    ]
    monkeypatch.setattr(watching, "holder", lambda path: {"host": "node1", "pid": 12})
    status = watch(done).collect()
    text = "\n".join(lines_of(status))
    assert "3 of 1 workers are at a unit" in text
    assert "unit 1, frame 0, for" in text
    assert ", dead" in text
    assert "merge:0 part 3" in text
    assert "12 of 12 frames" in one_line(status)
    screen = Console(width=100, record=True, file=io.StringIO())
    screen.print(panel(status))
    shown = [line.rstrip() for line in screen.export_text().splitlines()]
    assert shown[0].endswith("running, stage process")
    assert "frames  12 of 12 frames in 3 of 3 units" in shown
    assert "Ctrl-C leaves; the run goes on" in shown


def test_suspects_and_queue(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suspect = {"stage": "process", "unit": 2, "row": 1, "deaths": 1, "how": "died", "lineage": "abc", "at": 12.5}
    (done / "gather" / "suspects.json").write_text(json.dumps({"suspects": [suspect]}))
    jobs = [QueueState("12", "process", "PENDING", "Priority", restarts=2)]
    monkeypatch.setattr(watching, "queue_state", lambda run: jobs)
    shard_path(done, "process", 2).unlink()
    seen = watch(done)
    text = "\n".join(lines_of(seen.collect()))
    assert "suspect: frame 1 of unit 2 of process, its worker died (1)" in text
    assert "SLURM job 12 (process): PENDING (Priority), requeued 2 times" in text
    assert seen.state() == "queued"
    jobs[0] = QueueState("12", "process", "CANCELLED")
    assert watch(done).state() == "stopped"


def test_interrupted_run_says_so(done: Path) -> None:
    with (done / "journal.jsonl").open("a") as stream:
        stream.write(
            '{"time": 1, "event": "start", "driver": "pool", "workers": 2}\n{"time": 2, "event": "stopped", "why": "Interrupted"}\n'
        )
    assert "(Interrupted); the same command goes on" in lines_of(watch(done).collect())[0]


def test_twenty_thousand_units_are_read_once(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ['{"time": 1, "event": "stage", "stage": "process", "units": 20000, "done": 0, "frames": 0, "counts": {}}\n']
    counts = '{"INTEGRATED": 500}'
    lines += [
        f'{{"time": 2, "event": "unit", "stage": "process", "unit": {u}, "counts": {counts}, "seconds": 1}}\n' for u in range(20000)
    ]
    (done / "journal.jsonl").write_text("".join(lines))
    tail = watching.JournalTail(done)
    assert sum(1 for _ in tail.poll()) == 20001
    assert tail._offset == (done / "journal.jsonl").stat().st_size
    assert list(tail.poll()) == []
