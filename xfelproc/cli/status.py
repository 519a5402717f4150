"""Command status: what the shards and the journal say."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from xfelproc.cli.progress import rates
from xfelproc.io.shards import read_header, shard_path
from xfelproc.run.directory import open_run
from xfelproc.run.journal import read_journal
from xfelproc.run.lock import holder


def collect_status(folder: Path) -> dict[str, Any]:
    """Return how far a run is, as plain values."""
    directory = open_run(folder)
    manifest = directory.read_manifest()
    counts: Counter[str] = Counter()
    units, frames = 0, 0
    paces: list[float] = []
    for unit in range(manifest.n_units):
        header = read_header(shard_path(folder, "process", unit))
        if header is not None:
            counts.update(header.counts)
            units += 1
            size = int(manifest.offsets[unit + 1] - manifest.offsets[unit])
            frames += size
            paces.append(1e3 * header.seconds / size)
    failures: Counter[str] = Counter()
    last: dict[str, Any] = {}
    for event in read_journal(folder):
        if event["event"] == "failure":
            failures[str(event["reason"])] += int(event["count"])
        if event["event"] in ("start", "end", "stopped"):
            last = event
    lock = holder(folder / "lock")
    merged = directory.read_json("merge.json")
    return {
        "run": str(folder),
        "state": "running" if lock else "done" if last.get("event") == "end" and units == manifest.n_units else "stopped",
        "holder": lock,
        "units": {"done": units, "total": manifest.n_units},
        "frames": {"done": frames, "total": manifest.n_frames},
        "counts": dict(counts),
        "cpu_ms_a_frame": median(paces) if paces else None,
        "failures": dict(failures.most_common(5)),
        "exit_code": last.get("exit_code"),
        "merged": merged["overall"] if merged and not merged["empty"] else None,
        "report": str(directory.report) if directory.report.is_file() else None,
    }


def show_status(folder: Path, as_json: bool) -> None:
    """Print it."""
    status = collect_status(folder)
    if as_json:
        print(json.dumps(status, indent=1, default=str))
        return
    frames, units = status["frames"], status["units"]
    lines = [
        f"{status['run']}: {status['state']}",
        f"{frames['done']} of {frames['total']} frames in {units['done']} of {units['total']} units",
        rates(Counter(status["counts"])),
    ]
    if status["cpu_ms_a_frame"] is not None:
        lines.append(f"{status['cpu_ms_a_frame']:.1f} ms CPU a frame, in the median unit")
    lines += [f"failed: {count} x {reason}" for reason, count in status["failures"].items()]
    if status["holder"]:
        lines.append(f"process {status['holder']['pid']} on {status['holder']['host']} is at work")
    console = Console()
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
