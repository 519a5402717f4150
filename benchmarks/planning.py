"""Runs of very many frames: planning, the manifest's size, a worker's start, a restart; printed as a table.

    python benchmarks/planning.py [--frames 1000000] [--write docs/explanation/performance.md]

The frames are HDF5 files whose chunks are not allocated, and links to a few small images: next to nothing on disk. Times are CPU
times, with wall times behind them; memory is the largest resident size of the process that plans.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np
from _many import multi_event, single_frames

from xfelproc.io.manifest import Manifest, read_manifest, write_manifest
from xfelproc.io.manifest_reader import ManifestReader
from xfelproc.io.shards import ShardHeader, shard_path, write_shard
from xfelproc.models.frames import UnitResult
from xfelproc.models.tables import FrameTable, IndexedTable, LatticeTable, ReflectionTable, SpotTable
from xfelproc.stages.published import find_shards, planned_lineage, read_lineage, states_now

ROOT = Path(__file__).resolve().parents[1]
HEADING = "## Millions of frames"
Row = tuple[str, str, str]

PLAN = """
import json, resource, sys, time
from pathlib import Path
from xfelproc.io.manifest import write_manifest
from xfelproc.run.config import load_config
from xfelproc.run.plan import make_plan
from xfelproc.run.recipes import default_opener
begun = time.perf_counter()
cpu = time.process_time()
plan = make_plan(load_config(Path(sys.argv[1]), []), default_opener())
planned, cpu_planned = time.perf_counter(), time.process_time()
write_manifest(Path(sys.argv[2]), plan.manifest)
m = plan.manifest
arrays = [m.frame_source, m.frame_index, m.offsets, m.sources.names.template]
arrays += [a for t in (m.sources.names.middles, m.sources.names.beginnings, m.sources.names.endings) for a in (t.ends, t.text)]
arrays += [m.sources.table[c.name] for c in m.sources.table.SCHEMA]
own = len(m.sources.names.middles.text)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
times = [planned - begun, cpu_planned - cpu, time.process_time() - cpu_planned]
print(json.dumps([*times, sum(a.nbytes for a in arrays) - own, own, m.n_frames, peak]))
"""


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


def plan(job: Path, manifest: Path, what: str) -> list[Row]:
    """Plan a job in a process of its own."""
    command = [sys.executable, "-c", PLAN, str(job), str(manifest)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    wall, seconds, writing, memory, own, n, peak = json.loads(done.stdout)
    begun = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "xfelproc", "check", str(job)], env=environment(), capture_output=True, check=True)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    check = ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime
    return [
        (
            f"{what}: planning",
            "≤ 30 s",
            f"{seconds:.1f} s (wall {wall:.1f}), and {writing:.1f} s to write the manifest; `xfelproc check` {check:.1f} s",
        ),
        (f"{what}: memory of the process that plans", "≤ 500 MB", f"{peak:.0f} MiB"),
        (
            f"{what}: manifest a frame, in memory and on disk",
            "≤ 64 bytes, and the name's own",
            f"{memory / n:.1f} bytes and {own / n:.1f} of its name; {manifest.stat().st_size / n:.1f} on disk",
        ),
    ]


def worker_start(manifest: Path, few: Path, what: str) -> list[Row]:
    """Time what a worker reads of a manifest before its first frame, of a long one and of its first 10000 frames."""
    whole = read_manifest(manifest)
    rows = np.arange(10_000, dtype=np.int64)
    write_manifest(few, whole.with_frames(rows, 500))
    times = []
    for path, unit in ((few, 10), (manifest, whole.n_units - 10)):
        samples = []
        for _ in range(15):
            begun = time.process_time()
            reader = ManifestReader(path)
            given = reader.unit_input(unit)
            reader.close()
            samples.append(time.process_time() - begun)
            assert len(given.frame_index) == 500
        times.append(1e3 * float(np.median(samples)))
    text = f"{times[0]:.1f} ms of 10^4 frames, {times[1]:.1f} ms of {whole.n_frames:.0e}"
    return [(f"{what}: a worker opens the manifest and reads its first unit (500 frames)", "not of the run's length", text)]


def restart(run: Path, manifest: Manifest, units: int, what: str) -> list[Row]:
    """Time how long it takes to see which of ``units`` units are done, all of them being so."""
    empty = UnitResult(FrameTable(0), SpotTable(0), LatticeTable(0), IndexedTable(0), ReflectionTable(0))
    size = manifest.n_frames // units
    cut = manifest.with_frames(np.arange(size * units, dtype=np.int64), size)
    counts = {"FAILED": 1, "BLANK": 400, "HIT": 20, "INDEXED": 10, "INTEGRATED": 69, "LATTICES": 80, "REFLECTIONS": 80_000}
    for unit in range(units):
        given = cut.unit_input(unit)
        planned, states = planned_lineage("stage", given), states_now(given)
        path = shard_path(run, "process", unit)
        path.parent.mkdir(parents=True, exist_ok=True)
        header = ShardHeader(unit, read_lineage(planned, states), "x86_64 avx2", counts, 1.0, path, planned)
        with patch("os.fsync"):
            write_shard(path, header, empty, None, (given.numbers[given.unseen], states))
    begun, cpu = time.perf_counter(), time.process_time()
    found, changed = find_shards(run, "process", "stage", cut, range(units))
    wall, seconds = time.perf_counter() - begun, time.process_time() - cpu
    assert (len(found), changed) == (units, [])
    each = f"{1e3 * seconds / units:.2f} ms a unit, {seconds:.1f} s for all (wall {wall:.1f})"
    return [(f"{what}: restart with {units} units of {size} frames done", "≤ 1 ms a unit", each)]


def measure(work: Path, frames: int) -> list[Row]:
    """Return all rows."""
    files = max(1, frames // 1000)
    multi = multi_event(work / "multi", files, 1000)
    rows = plan(multi, work / "multi.h5", f"{files} HDF5 files of 1000 frames")
    single = single_frames(work / "single", frames, 10)
    rows += plan(single, work / "single.h5", f"{frames} images in 10 folders")
    rows += worker_start(work / "multi.h5", work / "few.h5", "HDF5 files")
    rows += worker_start(work / "single.h5", work / "few.h5", "images")
    for units in (2000, 20000):
        rows += restart(work / f"run{units}", read_manifest(work / "multi.h5"), units, "HDF5 files")
    rows += restart(work / "images", read_manifest(work / "single.h5"), 2000, "images, each looked at")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--write", type=Path, help="page whose last section, of this heading, is replaced")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), given.frames)
    table = "\n".join(["| figure | required | measured |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)])
    print(table)
    if given.write:
        text = given.write.read_text().partition(HEADING)[0].rstrip()
        made = "Made by `python benchmarks/planning.py --write docs/explanation/performance.md`: CPU times, wall times behind them."
        given.write.write_text(f"{text}\n\n{HEADING}\n\n{made}\n\n{table}\n")


if __name__ == "__main__":
    main()
