"""Merging of as many observations as an experiment has: time, CPU and memory of each stage, and the error of the result.

Run with ``python benchmarks/merging.py FOLDER --lattices 1000 10000 100000``. Shards of simulated stills (`simulation`:
about 1000 observations a lattice, 10^5 unique reflections) are written to FOLDER and kept for the next run; they are
merged by a pool of workers with three cycles of scaling. 10^8 observations want 15 GB of disk.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from xfelproc.drivers.threads import pin_threads

pin_threads()

import gemmi
import numpy as np

from xfelproc.algorithms.merging import Merge, cycle_state
from xfelproc.io.atomic import make_folder
from xfelproc.io.inflight import clear_inflight
from xfelproc.io.manifest import Manifest, Sources, SourceTable, write_manifest
from xfelproc.io.names import FileNames
from xfelproc.io.shards import ShardHeader, read_header, shard_path, write_shard
from xfelproc.models.conventions import FrameStatus
from xfelproc.models.frames import UnitResult
from xfelproc.models.tables import FrameTable, IndexedTable, LatticeTable, SpotTable
from xfelproc.run.config import Execution
from xfelproc.run.directory import RunDirectory
from xfelproc.run.folding import Gathering
from xfelproc.run.journal import Journal
from xfelproc.run.merging import FoundShards, MergeInput, merge_inputs
from xfelproc.run.recipes import make_driver
from xfelproc.run.signals import StopFlag
from xfelproc.run.target import MergingGroup
from xfelproc.simulation.observations import ObservationSettings, ObservationSimulator
from xfelproc.stages.fold import NodeSummary

UNIT = 500
GROUP = "P 43 21 2"
CELL = (160.0, 160.0, 130.0, 90.0, 90.0, 90.0)
SIMULATED = ObservationSettings(cell=CELL, space_group=GROUP, d_min=2.02, width=7e-5, mosaicity=9e-5, reach=2.5, misset=0.0)


def simulate_unit(run: Path, unit: int, first: int, last: int) -> int:
    """Write one shard of one lattice a frame; return its reflections."""
    path, n = shard_path(run, "process", unit), last - first
    known = read_header(path)
    if known is not None:
        return known.counts["REFLECTIONS"]
    simulated = ObservationSimulator(SIMULATED).simulate(first, last)
    crystals, reflections = simulated.crystals, simulated.table()
    frames = FrameTable(n, index=np.arange(first, last), status=[FrameStatus.INTEGRATED] * n, wavelength=crystals.wavelength)
    lattices = LatticeTable(n, frame=np.arange(n), A=crystals.A, cell=np.tile(CELL, (n, 1)))
    counts = {status.name: n * (status == FrameStatus.INTEGRATED) for status in FrameStatus}
    counts |= {"LATTICES": n, "REFLECTIONS": len(reflections)}
    make_folder(path.parent)
    result = UnitResult(frames, SpotTable(0), lattices, IndexedTable(0), reflections)
    write_shard(path, ShardHeader(unit, f"simulated {unit}", "", counts, 0.1, path), result)
    return len(reflections)


def simulate(run: Path, n_lattices: int) -> tuple[MergeInput, int]:
    """Write a run; return it with its number of reflections."""
    offsets = np.append(np.arange(0, n_lattices, UNIT), n_lattices)
    sources = Sources(FileNames.of(["/data"], [0], ["simulated.h5"]), SourceTable(1, n_frames=[n_lattices], chunk_frames=[1]))
    make_folder(run)
    write_manifest(run / "manifest.h5", Manifest(sources, np.zeros(n_lattices, np.int32), np.arange(n_lattices), offsets))
    units = len(offsets) - 1
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        n = sum(pool.map(simulate_unit, [run] * units, range(units), offsets[:-1].tolist(), offsets[1:].tolist()))
    return MergeInput(run, units), n


@dataclass
class Fold:
    """A fold: its name, when it began (s), and the CPU its tasks took in the workers (s)."""

    name: str
    begun: float
    cpu: float = 0.0


@dataclass
class Clock:
    """A journal that notes when each fold begins, and what its tasks take."""

    journal: Journal
    begun: float = field(default_factory=time.monotonic)
    folds: list[Fold] = field(default_factory=list)

    def write(self, event: str, **details: Any) -> None:
        self.journal.write(event, **details)
        if event == "fold":
            name = f"{details['stage'].partition('/')[2]} {details['iteration']}"
            self.folds.append(Fold(name, time.monotonic() - self.begun))

    def add(self, summary: NodeSummary) -> None:
        self.folds[-1].cpu += summary.seconds

    def told(self, end: float, n: int) -> str:
        ends = [fold.begun for fold in self.folds[1:]] + [end]
        return "".join(
            f"  {fold.name:12s} {end - fold.begun:7.1f} s wall {fold.cpu:8.1f} s CPU {1e9 * fold.cpu / n:6.0f} ns an observation\n"
            for fold, end in zip(self.folds, ends, strict=True)
        )


def largest(pid: int) -> float:
    """Return the largest resident size of a process in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def correlation(path: Path) -> float:
    """Return the CC of the merged intensities to the true ones."""
    merged, structure = gemmi.read_mtz_file(str(path)), ObservationSimulator(SIMULATED).structure
    rows = np.array(merged)[:, [*range(3), merged.column_labels().index("IMEAN")]]
    true = dict(zip(map(tuple, structure.hkl.tolist()), structure.mean.tolist(), strict=True))
    pairs = np.array([(row[3], true.get(tuple(int(v) for v in row[:3]), np.nan)) for row in rows.tolist()])
    return float(np.corrcoef(pairs[np.isfinite(pairs).all(axis=1)].T)[0, 1])


def measure(folder: Path, found: MergeInput, n: int, workers: int, settings: Merge) -> str:
    directory = RunDirectory(folder / "merged")
    shutil.rmtree(directory.path, ignore_errors=True)
    for path in (directory.gather, directory.merged):
        make_folder(path)
    execution = Execution(driver="pool" if workers else "inline", workers=workers or None)
    driver, clock = make_driver(execution, directory.path / "logs"), Clock(Journal(directory.path))
    clear_inflight(directory.path)
    place = Gathering(directory, execution, driver, clock, StopFlag(), lambda *event: print(*event), clock.add)  # type: ignore[arg-type]
    cpu = time.process_time()
    record = merge_inputs(place, FoundShards.of([found]), settings, MergingGroup(GROUP, False), directory.merged)
    seconds, cpu = time.monotonic() - clock.begun, time.process_time() - cpu
    pids = list(getattr(driver.executor(), "_processes", {})) if workers else []
    worker = max((largest(pid) for pid in pids), default=0.0)
    worker_cpu = sum(sum(map(int, Path(f"/proc/{pid}/stat").read_text().split()[13:15])) for pid in pids)
    driver.close()
    if record is None:
        return "nothing was merged"
    overall, dispatcher = record["overall"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return (
        f"{record['n_lattices']} lattices, {n} observations, {overall['n_unique']} unique: {seconds:.1f} s wall, "
        f"CPU {cpu:.1f} s dispatcher + {worker_cpu / os.sysconf('SC_CLK_TCK'):.1f} s workers; largest size {dispatcher:.0f} MiB "
        f"dispatcher, {worker:.0f} MiB a worker\n{clock.told(seconds, n)}  CC1/2 {overall['cc_half']:.4f}, R_split "
        f"{overall['r_split']:.4f}, CC to the truth {correlation(directory.merged / 'merged.mtz'):.4f}; {record['warnings']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lattices", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cycles", type=int, default=3)
    parser.add_argument("--no-unmerged", action="store_true", help="no unmerged.mtz")
    parser.add_argument("--all-cycles", action="store_true", help="do not stop when the reference changes no more")
    parser.add_argument("--scales-only", action="store_true", help="no post-refinement")
    given = parser.parse_args()
    for lattices in given.lattices:
        found, n = simulate(given.folder / str(lattices), lattices)
        pid = os.fork()  # a process for each: the largest size is that of its own work
        if pid == 0:
            settings = Merge(max_cycles=given.cycles, post_refine=not given.scales_only, unmerged=not given.no_unmerged)
            if given.all_cycles:
                cycle_state.TOLERANCE = 0.0
            print(measure(given.folder / str(lattices), found, n, given.workers, settings), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
