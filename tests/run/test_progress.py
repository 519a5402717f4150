from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.run.test_run import job, run
from xfelproc.io.shards import read_header, shard_path
from xfelproc.models.conventions import FrameStatus
from xfelproc.run.journal import JournalTail
from xfelproc.run.metrics import METRICS, MetricsFile, metrics_path, metrics_text
from xfelproc.run.progress import Pace, Progress


def events(n: int, seconds: float = 1.0, frames: int = 10) -> Iterator[dict[str, Any]]:
    yield {"time": 1000.0, "event": "start", "driver": "pool", "workers": 4}
    yield {"time": 1000.0, "event": "stage", "stage": "process", "units": n, "done": 0, "frames": 0, "counts": {}}
    for unit in range(n):
        counts = {"INTEGRATED": frames - 2, "BLANK": 1, "FAILED": 1, "LATTICES": frames}
        yield {
            "time": 1000 + seconds * (unit + 1),
            "event": "unit",
            "stage": "process",
            "unit": unit,
            "counts": counts,
            "seconds": 2.0,
        }
        yield {
            "time": 1000 + seconds * (unit + 1),
            "event": "failure",
            "unit": unit,
            "count": 1,
            "reason": f"frame {unit} is short",
        }


def fed(n: int, total: int, **options: Any) -> Progress:
    progress = Progress(np.full(total, 10))
    for event in events(n, **options):
        progress.feed(event)
    return progress


def test_counts_rates_and_time_left() -> None:
    progress = fed(300, 400)
    assert (progress.frames, progress.units) == (3000, 300)
    assert progress.counts["INTEGRATED"] == 2400
    assert progress.failures == {"frame … is short": 300}
    assert progress.pace.mean(1300) == pytest.approx(10.0)
    assert progress.pace.recent(1300) == pytest.approx(10.0, rel=0.05)
    assert progress.seconds_left(1300) == pytest.approx(100, rel=0.05)
    assert progress.cpu_ms_a_frame == pytest.approx(200)


def test_recent_rate_follows_a_change_of_pace() -> None:
    pace = Pace()
    pace.start(0.0)
    for second in range(1, 1001):
        pace.add(second, 100 if second <= 900 else 10)
    assert pace.recent(1000.0) == pytest.approx(10, rel=0.1)
    assert pace.mean(1000.0) == pytest.approx(91)


def test_recent_rate_of_slow_units() -> None:
    """Units longer than a minute: the rate is over the last few."""
    pace = Pace()
    pace.start(0.0)
    for k in range(1, 21):
        pace.add(300.0 * k, 50)
    assert pace.recent(6000.0) == pytest.approx(1 / 6, rel=0.05)


def test_recent_rate_falls_when_nothing_ends() -> None:
    pace = Pace()
    pace.start(0.0)
    for second in range(100):
        pace.add(second, 10)
    assert (pace.recent(1000.0) or 0) < 0.2


def test_a_unit_told_twice_counts_once() -> None:
    progress = fed(3, 10)
    for event in list(events(3))[2:]:
        progress.feed(event)
    assert progress.frames == 30
    assert progress.failures == {"frame … is short": 3}


def test_a_restart_forgets_failures() -> None:
    progress = fed(3, 10)
    progress.feed({"time": 2000.0, "event": "restart"})
    assert not progress.failures


def test_looking_at_shards_and_listening_agree(tmp_path: Path) -> None:
    run(job(tmp_path, ["hit", "blank", "truncated", "hit", *["hit"] * 9]), tmp_path / "out")
    sizes = np.array([4, 4, 4, 1])
    listened, looked = Progress(sizes), Progress(sizes)
    for event in JournalTail(tmp_path / "out").poll():
        listened.feed(event)
    looked.look(tmp_path / "out")
    assert listened.counts == looked.counts
    assert (listened.frames, listened.units) == (looked.frames, looked.units) == (13, 4)
    assert listened.ended


def test_resumed_run_counts_what_was_there(tmp_path: Path) -> None:
    config = job(tmp_path, ["hit"] * 12)
    run(config, tmp_path / "out")
    shard_path(tmp_path / "out", "process", 1).unlink()
    run(config, tmp_path / "out")
    progress = Progress(np.array([4, 4, 4]))
    for event in JournalTail(tmp_path / "out").poll():
        progress.feed(event)
    assert (progress.frames, progress.units, sum(progress.counts[s.name] for s in FrameStatus)) == (12, 3, 12)
    assert progress.pace.frames == 4


def test_journal_is_read_from_where_it_was_left(tmp_path: Path) -> None:
    path, tail = tmp_path / "journal.jsonl", JournalTail(tmp_path)
    assert list(tail.poll()) == []
    path.write_text('{"event": "start"}\n{"event": "un')
    assert [e["event"] for e in tail.poll()] == ["start"]
    with path.open("a") as stream:
        stream.write('it"}\nnot json\n{"event": "end"}\n')
    assert [e["event"] for e in tail.poll()] == ["unit", "end"]
    assert list(tail.poll()) == []


SAMPLE = re.compile(r'^xfelproc_(\w+)\{run="[^"]*"(?:,\w+="\w+")?\} -?[0-9.e+-]+$')


def test_metrics_are_of_the_text_format() -> None:
    text = metrics_text(fed(3, 10), 'a "run"\\', 1005.0)
    assert text.endswith("\n")
    assert 'run="a \\"run\\"\\\\"' in text
    lines = metrics_text(fed(3, 10), "lyso", 1005.0).splitlines()
    samples = [line for line in lines if not line.startswith("#")]
    assert all(SAMPLE.match(line) for line in samples), samples
    assert {SAMPLE.match(line).group(1) for line in samples} == set(METRICS)  # type: ignore[union-attr]
    assert 'xfelproc_frames{run="lyso",status="integrated"} 24' in samples
    assert [line for line in lines if line.startswith("# TYPE") and line.endswith("counter")] == [
        "# TYPE xfelproc_workers_lost_total counter"
    ]
    assert len([line for line in lines if line.startswith("# TYPE")]) == len(METRICS)


def test_metrics_file_of_a_run(tmp_path: Path) -> None:
    run(job(tmp_path, ["hit", "truncated", *["hit"] * 6]), tmp_path / "out")
    text = metrics_path(tmp_path / "out").read_text()
    assert 'xfelproc_running{run="out"} 0' in text
    assert 'xfelproc_frames_done{run="out"} 8' in text
    assert 'xfelproc_frames{run="out",status="failed"} 1' in text
    assert not list((tmp_path / "out" / "logs").glob(".tmp*"))


def test_metrics_are_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[float] = []
    metrics = MetricsFile(tmp_path, Progress(np.full(100, 10)))
    clock = [0.0]
    monkeypatch.setattr("xfelproc.run.metrics.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("xfelproc.run.metrics.write_atomic", lambda *a, **k: written.append(clock[0]))
    for event in events(100):
        clock[0] = event["time"] - 1000
        metrics.event(event)
    assert written == [0, 0, *range(10, 101, 10)]


def test_shards_of_another_format_are_told_from_missing_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(job(tmp_path, ["hit"] * 12), tmp_path / "out")
    damaged = shard_path(tmp_path / "out", "process", 2)
    damaged.write_bytes(damaged.read_bytes()[:100])
    shard_path(tmp_path / "out", "process", 1).unlink()
    monkeypatch.setattr("xfelproc.io.shards.SCHEMA", "other")
    progress = Progress(np.array([4, 4, 4]))
    progress.look(tmp_path / "out")
    assert progress.faults == {"of another format": 1, "truncated or damaged": 1}
    assert read_header(shard_path(tmp_path / "out", "process", 0)) is None
