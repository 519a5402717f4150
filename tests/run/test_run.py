from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.stages.fakes import SECTIONS, Quiet, open_fake
from xfelproc.drivers.inline import InlineDriver
from xfelproc.errors import ConfigError, OutputError, RunDirectoryError
from xfelproc.io.inflight import record_path
from xfelproc.io.manifest import read_manifest
from xfelproc.io.shards import read_header, read_shard, shard_path
from xfelproc.models.conventions import FrameStatus
from xfelproc.run.config import JobConfig, config_class, make_config
from xfelproc.run.directory import RunDirectory
from xfelproc.run.journal import read_journal, rebuild
from xfelproc.run.recipes import Outcome, give_up, run_job, stages_of
from xfelproc.run.signals import Interrupted

CELL = [10.0, 20.0, 30.0, 90.0, 90.0, 90.0]


def job(folder: Path, words: list[str] | None = None, driver: str = "inline", **sections: Any) -> JobConfig:
    if words is not None:
        (folder / "frames.txt").write_text(" ".join(words))
    document: dict[str, Any] = {
        "input": {"files": "frames.txt"},
        "index": {"cell": CELL},
        "execution": {"driver": driver, "workers": 2, "unit_size": 4, "max_failed": 1.0},
    }
    for name, keys in sections.items():
        document.setdefault(name, {}).update(keys)
    return make_config(document, folder, config_class(SECTIONS))


def run(config: JobConfig, output: Path, **options: Any) -> Outcome:
    return run_job(config, output, options.pop("reporter", Quiet()), only="process", opener=open_fake, **options)


def results(output: Path) -> list[dict[str, Any]]:
    """Everything in the shards but times."""
    found = []
    for unit in range(read_manifest(output / "manifest.h5").n_units):
        shard = read_shard(shard_path(output, "process", unit))
        tables = {name: getattr(shard, name) for name in ("frames", "spots", "lattices", "indexed", "reflections")}
        found.append({f"{n}.{c.name}": t[c.name].tolist() for n, t in tables.items() for c in t.SCHEMA if c.name != "times"})
    return found


def test_run_inline(tmp_path: Path) -> None:
    config = job(tmp_path, ["hit", "hit", "blank", "truncated", "bug", *["hit"] * 6])
    outcome = run(config, tmp_path / "out")
    assert outcome.exit_code == 0
    assert outcome.counts["FAILED"] == 2
    assert outcome.counts["BLANK"] == 1
    first, second, third = (read_shard(shard_path(tmp_path / "out", "process", u)) for u in range(3))
    assert [len(s.frames) for s in (first, second, third)] == [4, 4, 3]
    assert first.frames["reason"][2] == "no spots"
    assert "truncated" in first.frames["reason"][3]
    assert second.frames["reason"][0] == "ZeroDivisionError: a bug"
    assert "ZeroDivisionError" in (tmp_path / "out" / "logs" / "process" / "000001.log").read_text()
    assert list(first.lattices["frame"]) == [0]  # frame 1 has 4 spots, which fit no lattice
    assert first.frames["status"][1] == FrameStatus.HIT
    spots = first.spots.select(first.spots["frame"] == 0)
    assert len(spots) == first.frames["n_spots"][0]
    assert np.all(second.indexed["spot"] < len(second.spots))
    assert second.spots["frame"][second.indexed["spot"][-1]] == second.lattices["frame"][second.indexed["lattice"][-1]]


def test_pool_equals_inline(tmp_path: Path) -> None:
    words = ["hit", "blank", "hit", "bug"] * 8
    run(job(tmp_path, words), tmp_path / "inline")
    run(job(tmp_path, words, driver="pool"), tmp_path / "pool")
    assert results(tmp_path / "inline") == results(tmp_path / "pool")
    workers = {e["worker"] for e in read_journal(tmp_path / "pool") if e["event"] == "unit"}
    assert os.getpid() not in {int(w.rpartition("/")[2]) for w in workers}


def test_second_run_does_nothing(tmp_path: Path) -> None:
    config = job(tmp_path, ["hit"] * 10)
    run(config, tmp_path / "out")
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "shards").rglob("*.h5")}
    reporter = Quiet()
    outcome = run(config, tmp_path / "out", reporter=reporter)
    assert reporter.frames == 0
    assert outcome.counts["HIT"] + outcome.counts["INTEGRATED"] == 10
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "shards").rglob("*.h5")}


@pytest.mark.parametrize("damage", ["truncate", "empty", "garbage"])
def test_damaged_shard_is_redone(tmp_path: Path, damage: str) -> None:
    config = job(tmp_path, ["hit"] * 10)
    run(config, tmp_path / "out")
    whole = results(tmp_path / "out")
    path = shard_path(tmp_path / "out", "process", 1)
    content = path.read_bytes()
    path.write_bytes({"truncate": content[: len(content) // 2], "empty": b"", "garbage": b"x" * 5000}[damage])
    assert read_header(path) is None
    reporter = Quiet()
    run(config, tmp_path / "out", reporter=reporter)
    assert reporter.frames == 4
    assert results(tmp_path / "out") == whole


def test_changed_input_is_processed_again(tmp_path: Path) -> None:
    config = job(tmp_path, ["hit"] * 8)
    run(config, tmp_path / "out")
    time.sleep(0.01)
    config = job(tmp_path, ["blank"] * 8)
    assert run(config, tmp_path / "out").counts["BLANK"] == 8


def test_other_parameters_are_refused(tmp_path: Path) -> None:
    run(job(tmp_path, ["hit"] * 8), tmp_path / "out")
    before = results(tmp_path / "out")
    changed = job(tmp_path, spots={"min_snr": 3.0})
    with pytest.raises(RunDirectoryError, match=r"spots.min_snr: 1.0 -> 3.0(.|\n)*--restart"):
        run(changed, tmp_path / "out")
    assert results(tmp_path / "out") == before
    reporter = Quiet()
    run(job(tmp_path, merge={"d_min": 3.0}), tmp_path / "out", reporter=reporter)
    assert reporter.frames == 0
    run(changed, tmp_path / "out", restart=True)
    assert results(tmp_path / "out") != before


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    config = job(tmp_path, ["hit"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(RunDirectoryError, match="not of a run"):
        run(config, tmp_path / "out")


def test_some_stages_alone() -> None:
    assert [stage.name for stage in stages_of("stills", "process, cell")] == ["cell", "process"]
    with pytest.raises(ConfigError, match=r"--only nonsense: there is no such stage \(known: cell, process"):
        stages_of("stills", "process,nonsense")


def test_second_run_at_once_is_refused(tmp_path: Path) -> None:
    config = job(tmp_path, ["hit"])
    run(config, tmp_path / "out")
    from xfelproc.run.lock import run_lock

    with run_lock(tmp_path / "out"), pytest.raises(RunDirectoryError, match=f"process {os.getpid()}"):
        run(config, tmp_path / "out")
    run(config, tmp_path / "out")


@pytest.mark.parametrize("damage", ["", "{", '{"host": "h"}'])
def test_lock_of_a_dead_process_is_taken(tmp_path: Path, damage: str) -> None:
    config = job(tmp_path, ["hit"])
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    (tmp_path / "out").mkdir()
    lease = {"host": os.uname().nodename, "pid": process.pid, "started": "", "heartbeat": time.time()}
    (tmp_path / "out" / "lock").write_text(damage or json.dumps(lease))
    if damage:
        os.utime(tmp_path / "out" / "lock", (0, 0))
    run(config, tmp_path / "out")
    assert not (tmp_path / "out" / "lock").exists()


def test_worker_death_costs_nothing(tmp_path: Path) -> None:
    words = ["hit"] * 10 + ["kill-once"] + ["hit"] * 13
    run(job(tmp_path, ["hit"] * 24), tmp_path / "calm")
    outcome = run(job(tmp_path, words, driver="pool"), tmp_path / "out")
    assert outcome.counts["FAILED"] == 0
    assert results(tmp_path / "calm") == results(tmp_path / "out")
    assert any(e["event"] == "workers_lost" for e in read_journal(tmp_path / "out"))


def test_poisonous_frames_are_left_out(tmp_path: Path) -> None:
    words = ["hit"] * 6 + ["kill"] + ["hit"] * 6 + ["kill", "kill"] + ["hit"] * 5
    outcome = run(job(tmp_path, words, driver="pool"), tmp_path / "out")
    assert outcome.counts["FAILED"] == 3
    second = read_shard(shard_path(tmp_path / "out", "process", 1))
    assert list(second.frames["status"] == FrameStatus.FAILED) == [False, False, True, False]
    assert second.frames["reason"][2] == "its worker died twice at this frame: left out"


def test_frame_that_never_returns(tmp_path: Path) -> None:
    words = ["hit"] * 5 + ["hang"] + ["hit"] * 6
    outcome = run(job(tmp_path, words, driver="pool", execution={"unit_timeout": 6.0}), tmp_path / "out")
    assert outcome.counts["FAILED"] == 1
    assert "took more than 6 s" in read_shard(shard_path(tmp_path / "out", "process", 1)).frames["reason"][1]


def test_unreadable_file_among_others(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("hit hit hit")
    (tmp_path / "bad.txt").write_text("")
    config = job(tmp_path, input={"files": ["*.txt"]})
    outcome = run(config, tmp_path / "out")
    assert outcome.counts["FAILED"] == 1
    assert outcome.counts["INTEGRATED"] + outcome.counts["HIT"] == 3


def test_no_readable_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none of 1 files can be read"):
        run(job(tmp_path, []), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_many_failures(tmp_path: Path) -> None:
    config = job(tmp_path, ["hit", "truncated"], execution={"max_failed": 0.4})
    outcome = run(config, tmp_path / "out")
    assert outcome.exit_code == 1
    assert "1 of 2 frames failed" in outcome.messages[0]


def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = job(tmp_path, ["hit"] * 12)
    run(config, tmp_path / "calm")
    import xfelproc.io.atomic as atomic

    fsync, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 9:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OutputError, match="disk is full"):
        run(config, tmp_path / "out")
    monkeypatch.undo()
    assert not list((tmp_path / "out").rglob(".tmp-*"))
    run(config, tmp_path / "out")
    assert results(tmp_path / "out") == results(tmp_path / "calm")


def test_a_disk_too_full_for_a_last_word_blames_no_frame(tmp_path: Path) -> None:
    def write(event: str, **details: Any) -> None:
        raise OutputError("the disk is full")

    record = record_path(tmp_path, 1)
    record.parent.mkdir(parents=True)
    record.write_text("process 1 2 3.0 4.0 ab")
    driver, journal = InlineDriver(), SimpleNamespace(write=write)
    session: Any = SimpleNamespace(driver=driver, journal=journal, directory=RunDirectory(tmp_path))
    with pytest.raises(OutputError):
        give_up(session, OutputError("the disk is full"))
    assert not record.exists()


def test_interrupt_is_resumable(tmp_path: Path) -> None:
    config = job(tmp_path, ["slow"] * 40)

    class Interrupting(Quiet):
        def unit(self, frames: int, counts: dict[str, int]) -> None:
            super().unit(frames, counts)
            if self.frames == 12:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(config, tmp_path / "out", reporter=Interrupting())
    reporter = Quiet()
    run(config, tmp_path / "out", reporter=reporter)
    assert reporter.frames == 28


def test_journal_can_be_rebuilt(tmp_path: Path) -> None:
    run(job(tmp_path, ["hit"] * 12), tmp_path / "out")
    path = tmp_path / "out" / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for line in lines if b'"unit", "stage"' not in line) + b'{"event": "un')
    assert rebuild(tmp_path / "out") == 3
    assert sorted(e["unit"] for e in read_journal(tmp_path / "out") if e["event"] == "unit") == [0, 1, 2]
    assert rebuild(tmp_path / "out") == 0
