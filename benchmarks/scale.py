"""How far the work spreads: the dispatcher's rate, the real loop over thousands of virtual workers, and a model of whole jobs.

    python benchmarks/scale.py rate --seconds 300          # tasks a second over MPI, journal on, 2 kB results
    python benchmarks/scale.py model [--run RUN] [--write docs/explanation/scaling.md]

``model`` feeds measured times into a discrete-event run of the real dispatch loop and into a formula, and prints both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np
from _many import multi_event
from _virtual import VirtualClock, VirtualDriver, VirtualExecutor, World

from xfelproc.io.manifest import default_unit_size, write_manifest
from xfelproc.io.nodes import read_node, write_node
from xfelproc.io.shards import read_frames, read_header
from xfelproc.models.conventions import FrameStatus
from xfelproc.run.config import load_config
from xfelproc.run.journal import Journal
from xfelproc.run.loop import Dispatch
from xfelproc.run.plan import make_plan
from xfelproc.run.recipes import default_opener
from xfelproc.stages.execute import UnitSummary

ROOT = Path(__file__).resolve().parents[1]
MERGE_RANKS = 64
RESULT_BYTES = 2000
REASONS = tuple((f"{'no lattice of the target cell, attempt ' * 12}{i}", 3) for i in range(4))
"""Reasons of failure that make a summary of about 2 kB."""


def summary_of(unit: int) -> UnitSummary:
    """Return a unit's summary of 2 kB."""
    counts = {status.name: 100 for status in FrameStatus} | {"LATTICES": 40, "REFLECTIONS": 16000}
    return UnitSummary("process", unit, counts, 1.25, "12345", REASONS)


def journal_writer(journal: Journal) -> Callable[[UnitSummary], None]:
    """Return what the real run does with a summary, apart from the terminal."""

    def write(summary: UnitSummary) -> None:
        counts, seconds = summary.counts, round(summary.seconds, 4)
        journal.write("unit", stage="process", unit=summary.unit, counts=counts, seconds=seconds, worker=summary.worker)
        for reason, count in summary.failures:
            journal.write("failure", unit=summary.unit, count=count, reason=reason)

    return write


# --- the rate over MPI ------------------------------------------------------------------------------------------------------


def pause_task(unit: int, seconds: float) -> UnitSummary:
    """Wait, and return 2 kB."""
    time.sleep(seconds)
    return summary_of(unit)


@dataclass(frozen=True)
class Rate:
    """Completions a second, the dispatcher's share of a core and its memory (MiB) after the first and after the last seconds."""

    completions: int
    seconds: float
    cpu_seconds: float
    memory: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Completions a second."""
        return self.completions / self.seconds

    @property
    def share(self) -> float:
        """Part of a core."""
        return self.cpu_seconds / self.seconds

    @property
    def cost(self) -> float:
        """Seconds of the dispatcher a completion."""
        return self.cpu_seconds / self.completions


def resident() -> float:
    """Return this process's memory in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def rank_main(seconds: float, wanted: float) -> None:
    """Dispatch for some time at the rate wanted, in every rank; rank 0 prints a line of JSON."""
    from xfelproc.drivers import mpi

    mpi.start()
    driver = mpi.MPIDriver()
    units = int(seconds * wanted)
    driver.executor().submit(pause_task, 0, 0.0).result()  # the ranks are there
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        write, memory = journal_writer(journal), [resident()]
        begun, cpu = time.monotonic(), time.process_time()

        def on_done(summary: UnitSummary) -> None:
            write(summary)
            if time.monotonic() - begun > 10.0 * len(memory):
                memory.append(resident())

        # every worker waits as long as the rate wanted leaves it: the dispatcher, not the tasks, sets what is reached
        pause = driver.workers / wanted
        dispatch: Dispatch[UnitSummary] = Dispatch(
            driver=driver,
            submit=lambda executor, unit, quarantine: executor.submit(pause_task, unit, pause),
            on_done=on_done,
            activity=list,
            forget=lambda: None,
            on_event=lambda word, details: None,
        )
        dispatch.run(range(units))
        rate = Rate(units, time.monotonic() - begun, time.process_time() - cpu, (*memory, resident()))
        journal.close()
    driver.close()
    print(json.dumps(asdict(rate)), flush=True)
    mpi.finish(0)


def measure_rate(seconds: float, wanted: float, ranks: int) -> Rate:
    """Run `rank_main` under mpiexec."""
    mpiexec = Path(sys.executable).parent / "mpiexec"
    command = [str(mpiexec) if mpiexec.exists() else "mpiexec", "--allow-run-as-root", "--oversubscribe", "-n", str(ranks)]
    command += [sys.executable, __file__, "rank", "--seconds", str(seconds), "--wanted", str(wanted)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return Rate(**{**found, "memory": tuple(found["memory"])})


def show_rate(seconds: float, wanted: float, ranks: int) -> Rate:
    """Measure and print."""
    rate = measure_rate(seconds, wanted, ranks)
    memory = rate.memory
    print(
        f"{rate.completions} completions of {RESULT_BYTES} bytes in {rate.seconds:.1f} s: {rate.rate:.0f} a second; dispatcher "
        f"{100 * rate.share:.0f} % of a core ({1e6 * rate.cost:.0f} µs each); memory {memory[0]:.0f} MiB at first, "
        f"{memory[min(1, len(memory) - 1)]:.0f} after 10 s, {memory[-1]:.0f} at the end"
    )
    return rate


# --- measured times ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """What is measured here, and what is assumed of a cluster. Seconds."""

    frame_blank: float
    frame_hit: float
    unit_overhead: float
    """Opening files and publishing a shard."""
    dispatch: float
    """The dispatcher's time a completion."""
    start: float
    """From the launch of a rank to its first frame, files cached."""
    files_at_start: int
    """Files that a rank opens until then."""
    plan_a_file: float
    plan_a_frame: float
    node_a_megabyte: float
    """Writing or reading a fold's node."""
    observation: float = 6.5e-7
    """A worker's time an observation and pass of merging: 36.1 s for 9.8e6 observations in six (benchmarks/merging.py)."""
    row: float = 3.0e-7
    """The dispatcher's time a row of the unmerged file."""
    # assumed
    ranks_a_node: int = 64
    frames_a_file: int = 1000
    hit_rate: float = 0.2
    hit_rate_spread: float = 0.3
    """Relative standard deviation of the hit rate between units."""
    slow_share: float = 0.002
    slow_factor: float = 3.0
    """This share of units meets a slow disk or node and takes that many times as long."""
    opens_a_second: float = 20_000.0
    """What the shared file system answers; a node asks once for all its ranks."""
    launch_a_doubling: float = 0.25
    """Seconds that mpiexec or srun takes for each doubling of the nodes."""
    reflections: int = 50_000
    observations_a_hit: int = 300
    passes: int = 9
    """Folds of merging over all observations, one after the other."""
    most_leaves: int = 256

    @property
    def frame(self) -> float:
        """Mean time of a frame."""
        return self.hit_rate * self.frame_hit + (1.0 - self.hit_rate) * self.frame_blank


def measure_machine(run: Path, dispatch: float) -> Machine:
    """Return a machine with the times of a run that was done here, on warm kernels."""
    blank: list[float] = []
    hit: list[float] = []
    overheads: list[float] = []
    for path in sorted((run / "shards" / "process").rglob("*.h5")):
        header, frames = read_header(path), read_frames(path)
        if header is None:
            continue
        seconds = 1e-3 * frames["times"].sum(axis=1)
        overheads.append(header.seconds - float(seconds.sum()))
        for status, value in zip(frames["status"], seconds, strict=True):
            (blank if status == FrameStatus.BLANK else hit).append(float(value))
    if not blank or not hit:
        raise SystemExit(f"{run}: needs blanks and hits")
    start, files = measure_start()
    plan_a_file, plan_a_frame = measure_plan()
    return Machine(
        frame_blank=statistics.median(blank),
        frame_hit=statistics.median(hit),
        unit_overhead=max(0.0, statistics.median(overheads)),
        dispatch=dispatch,
        start=start,
        files_at_start=files,
        plan_a_file=plan_a_file,
        plan_a_frame=plan_a_frame,
        node_a_megabyte=measure_node(),
    )


def measure_start() -> tuple[float, int]:
    """Return seconds that a worker's imports take, and the files it opens for them."""
    code = (
        "import sys\nfrom importlib import import_module\nfrom xfelproc.run.early import PRELOAD\n"
        "[import_module(name) for name in PRELOAD]\n"
        "files = {getattr(m, '__file__', None) for m in sys.modules.values()} - {None}\n"
        "maps = {line.split()[-1] for line in open('/proc/self/maps') if '.so' in line}\n"
        "print(len(files | maps))"
    )
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    times, count = [], 0
    for _ in range(3):
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True
        )
        times.append(time.perf_counter() - begun)
        count = int(done.stdout)
    return min(times), 2 * count  # a module is looked for in several folders, and a kernel's index and code are two files


def measure_plan() -> tuple[float, float]:
    """Return seconds that planning takes a file and a frame, the manifest's stamp and file included."""

    def plan(files: int, frames: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            config = load_config(multi_event(Path(folder) / "raw", files, frames))
            begun = time.perf_counter()
            manifest = make_plan(config, default_opener()).manifest
            write_manifest(Path(folder) / "manifest.h5", manifest)
            return time.perf_counter() - begun + 0.0 * len(manifest.stamp)

    plan(70, 5)
    few, many, long = plan(70, 5), plan(470, 5), plan(70, 50_000)
    return (many - few) / 400, max(0.0, long - few) / (70 * 50_000)


def measure_node() -> float:
    """Return seconds a megabyte of writing or reading a node."""
    partial = {name: np.random.default_rng(1).normal(size=250_000) for name in "abcd"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "0-0000.h5"
        begun = time.perf_counter()
        for _ in range(5):
            write_node(path, "x", partial)
            read_node(path)
        return (time.perf_counter() - begun) / 10 / 8.0


# --- units, the discrete-event run, the formula -----------------------------------------------------------------------------


def unit_times(machine: Machine, n_frames: int, seed: int = 1) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the seconds of each unit of a job, drawn: hit rate by unit, hits by chance, slow units."""
    generator = np.random.default_rng(seed)
    size = default_unit_size(n_frames)
    n = max(1, n_frames // size)
    mean, spread = machine.hit_rate, machine.hit_rate * machine.hit_rate_spread
    a = mean * (mean * (1.0 - mean) / spread**2 - 1.0)
    hits = generator.binomial(size, generator.beta(a, a * (1.0 - mean) / mean, n))
    seconds = machine.unit_overhead + hits * machine.frame_hit + (size - hits) * machine.frame_blank
    return np.where(generator.random(n) < machine.slow_share, machine.slow_factor * seconds, seconds)


def starts(machine: Machine, ranks: int, n_frames: int) -> float:
    """Return seconds until the ranks compute: launch, the storm on the file system, imports, and the plan meanwhile in rank 0."""
    nodes = -(-ranks // machine.ranks_a_node)
    launch = machine.launch_a_doubling * np.log2(2 * nodes)
    storm = nodes * machine.files_at_start / machine.opens_a_second
    plan = n_frames / machine.frames_a_file * machine.plan_a_file / ranks + n_frames * machine.plan_a_frame
    return float(launch + storm + machine.start + plan)


def folds(machine: Machine, ranks: int, n_frames: int) -> float:
    """Return seconds of merging: passes over the leaves, each then up a tree whose nodes take 16 partials a task, then rows."""
    observations = n_frames * machine.hit_rate * machine.observations_a_hit
    leaves = min(machine.most_leaves, max(8, int(observations) // (32 * machine.reflections)))
    megabytes = machine.reflections * 8 * 5 / 1e6
    leaf = observations * machine.observation / min(leaves, ranks) + megabytes * machine.node_a_megabyte
    levels = int(np.ceil(np.log(leaves) / np.log(16))) if leaves > 1 else 0
    node = 17 * megabytes * machine.node_a_megabyte
    return float(machine.passes * (leaf + levels * node + leaves * machine.dispatch) + observations * machine.row)


def formula(machine: Machine, ranks: int, n_frames: int) -> float:
    """Return seconds of the frames by formula: the work shared out, the dispatcher's bound, and the last units' tail.

    The tail of list scheduling: when the queue is empty every rank is somewhere in its last unit, so that the last to end is about
    one of the longest units behind the mean by half a unit.
    """
    seconds = unit_times(machine, n_frames)
    workers = ranks - 1
    shared = float(seconds.sum()) / workers
    last = float(np.quantile(seconds, 1.0 - 1.0 / max(2.0, min(workers, len(seconds)))))
    return max(shared + last - 0.5 * float(seconds.mean()), len(seconds) * machine.dispatch)


def events(machine: Machine, ranks: int, n_frames: int) -> tuple[float, float]:
    """Return seconds of the frames by a discrete-event run of the real loop, with a real journal; and the dispatcher's share."""
    seconds = unit_times(machine, n_frames)
    world = World()
    begun = world.now()
    pool = VirtualExecutor(world, [begun] * (ranks - 1), lambda unit: float(seconds[unit]), summary_of, machine.dispatch)
    driver = VirtualDriver(pool, ranks - 1)
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        dispatch: Dispatch[UnitSummary] = Dispatch(
            driver=driver,
            submit=lambda executor, unit, quarantine: executor.submit(summary_of, unit),
            on_done=journal_writer(journal),
            activity=list,
            forget=lambda: None,
            on_event=lambda word, details: None,
            clock=VirtualClock(world),
        )
        dispatch.run(range(len(seconds)))
        journal.close()
    return world.now() - begun, pool.busy / ((world.now() - begun) * (ranks - 1))


@dataclass(frozen=True)
class Prediction:
    """A job on so many ranks: seconds of its parts and the efficiency, work over ranks times wall time."""

    ranks: int
    frames: int
    start: float
    by_events: float
    by_formula: float
    merge: float
    efficiency: float
    efficiency_formula: float
    with_merging: float


def predict(machine: Machine, ranks: int, n_frames: int) -> Prediction:
    """Return the prediction; merging is a job of its own, on `MERGE_RANKS`."""
    start, formed = starts(machine, ranks, n_frames), formula(machine, ranks, n_frames)
    merge = folds(machine, MERGE_RANKS, n_frames)
    found, _ = events(machine, ranks, n_frames)
    work = float(unit_times(machine, n_frames).sum())
    merge_work = n_frames * machine.hit_rate * machine.observations_a_hit * machine.passes * machine.observation
    spent = ranks * (start + found) + MERGE_RANKS * (merge + starts(machine, MERGE_RANKS, 0))
    return Prediction(
        ranks=ranks,
        frames=n_frames,
        start=start,
        by_events=found,
        by_formula=formed,
        merge=merge,
        efficiency=work / (ranks * (start + found)),
        efficiency_formula=work / (ranks * (start + formed)),
        with_merging=(work + merge_work) / spent,
    )


def smallest(machine: Machine, ranks: int, wanted: float = 0.9) -> int:
    """Return the smallest job, in frames of one digit, that reaches an efficiency by the formula."""
    for power in range(4, 12):
        for digit in range(1, 10):
            n_frames = digit * 10**power
            work = machine.frame * n_frames
            if work / (ranks * (starts(machine, ranks, n_frames) + formula(machine, ranks, n_frames))) >= wanted:
                return n_frames
    return 0


RANKS = (64, 1024, 4096)
JOBS = (10_000_000, 100_000_000, 300_000_000)


def page(machine: Machine, predictions: Sequence[Prediction], bounds: dict[int, int], rate: Rate | None) -> str:
    """Return the page of the docs."""
    head = [
        "# How far the work spreads",
        "",
        "Made by `python benchmarks/scale.py model --write docs/explanation/scaling.md`: times measured on a machine of two cores,",
        "the real dispatch loop over virtual workers (a discrete-event run: what the loop computes takes the time it takes, with",
        "the real journal; what a worker does takes its drawn time), and a formula that predicts the same.",
        "",
    ]
    if rate is not None:
        head += [
            f"**Dispatcher over MPI**: {rate.completions:,} completions of {RESULT_BYTES / 1000:g} kB in {rate.seconds:.0f} s, "
            f"{rate.rate:.0f} a second, with {100 * rate.share:.0f} % of a core and the journal on; its memory "
            f"{rate.memory[min(1, len(rate.memory) - 1)]:.0f} MiB after 10 s and {rate.memory[-1]:.0f} MiB at the end "
            "(`python benchmarks/scale.py rate --seconds 300`).",
            "",
        ]
    rows = [
        "## Efficiency",
        "",
        "| frames | core-hours | ranks | start s | frames s: events | formula | efficiency: events | formula | with merging |",
    ]
    rows.append("|---|---|---|---|---|---|---|---|---|")
    for p in predictions:
        hours = machine.frame * p.frames / 3600
        rows.append(
            f"| {p.frames:,} | {hours:.0f} | {p.ranks} | {p.start:.1f} | {p.by_events:.1f} | {p.by_formula:.1f} "
            f"| {100 * p.efficiency:.1f} % | {100 * p.efficiency_formula:.1f} % | {100 * p.with_merging:.1f} % |"
        )
    merges = {p.frames: p.merge for p in predictions}
    rows += [
        "",
        "Efficiency is the work (all units one after the other) over ranks times wall time, from the launch to the last shard;",
        "one rank dispatches and counts as lost. "
        + ", ".join(f"{n:,} ranks reach 90 % from {f:,} frames" for n, f in bounds.items())
        + ".",
        "Merging is a smaller job after it: "
        + ", ".join(f"{seconds:.0f} s on 64 ranks for {frames:,} frames" for frames, seconds in merges.items())
        + "; without the unmerged file (`merge.unmerged = false`) "
        + ", ".join(f"{folds(replace(machine, row=0.0), MERGE_RANKS, frames):.0f} s" for frames in merges)
        + ".",
        "",
    ]
    return "\n".join([*head, *rows, *assumptions(machine)]) + "\n"


def assumptions(machine: Machine) -> list[str]:
    """Return what went in, in words."""
    m = machine
    read = 4096 * 8e-3 / m.frame
    return [
        "## What went in",
        "",
        f"Measured: a blank {1e3 * m.frame_blank:.1f} ms and a hit {1e3 * m.frame_hit:.1f} ms of CPU, reading included;",
        f"{1e3 * m.unit_overhead:.0f} ms a unit for opening files and publishing the shard; {1e6 * m.dispatch:.0f} µs of the",
        f"dispatcher a completion; {m.start:.1f} s from the launch of a rank to its first frame, in which it opens",
        f"{m.files_at_start} files; {1e3 * m.plan_a_file:.2f} ms to count the frames of a file,",
        f"{1e6 * m.plan_a_frame:.2f} µs a frame",
        f"in the plan; {1e3 * m.node_a_megabyte:.1f} ms a megabyte of a fold's node;",
        f"{1e9 * m.observation:.0f} ns an observation and",
        f"pass of merging, {1e9 * m.row:.0f} ns of the dispatcher a row of the unmerged file.",
        "",
        "Assumed:",
        "",
        f"* {100 * m.hit_rate:.0f} % of the frames are hits;",
        f"  the rate varies between units by {100 * m.hit_rate_spread:.0f} % of itself.",
        f"* {100 * m.slow_share:.1f} % of the units meet a slow disk or node and take {m.slow_factor:g} times as long: stragglers.",
        f"* Files of {m.frames_a_file} frames;",
        f"  units of the size that a run chooses ({default_unit_size(10**7)} frames in long runs).",
        f"* Start-up storm: a node of {m.ranks_a_node} ranks asks the shared file system once for each file",
        "  (its ranks share the",
        f"  node's cache), and that answers {m.opens_a_second:,.0f} requests a second. An image, or a copy of the environment",
        "  on the node's disk, makes this term zero. Compiled kernels are on the node's disk already (`xfelproc warm`).",
        f"* The launcher takes {m.launch_a_doubling:g} s for each doubling of the nodes.",
        "* Ranks count the frames of files for the plan, as many at once as there are ranks.",
        "* The file system feeds frames to all ranks as fast as here: 4096 ranks that read a 4-megapixel frame of 16 bits every",
        f"  {1e3 * m.frame:.0f} ms read {read:,.0f} GB/s uncompressed. Few file systems do; then it is the file system that is",
        "  measured, and no processor of frames can do better.",
        f"* Merging: {m.observations_a_hit} observations a hit, {m.reflections:,} unique reflections, {m.passes} passes, at most",
        f"  {m.most_leaves} leaves, 16 partials a task; no stragglers.",
        "",
        "The formula: the work shared out evenly over the ranks that compute, plus one of the longest units less half a mean one",
        "(when the queue is empty every rank is somewhere in its last unit), and never less than completions times the",
        "dispatcher's cost; before it launch, storm, imports and plan.",
    ]


def show_model(machine: Machine, write: Path | None, rate: Rate | None, jobs: Sequence[int], ranks: Sequence[int]) -> None:
    """Predict, print, and write the page."""
    predictions = []
    for n_frames in jobs:
        for n in ranks:
            predictions.append(predict(machine, n, n_frames))
            p = predictions[-1]
            print(
                f"{p.frames:>13,} frames on {p.ranks:>5} ranks: start {p.start:.1f} s, frames {p.by_events:.1f} s (formula "
                f"{p.by_formula:.1f}), efficiency {100 * p.efficiency:.1f} % ({100 * p.efficiency_formula:.1f})",
                flush=True,
            )
    bounds = {n: smallest(machine, n) for n in ranks}
    for n, frames in bounds.items():
        print(f"{n} ranks reach 90 % from {frames:,} frames ({machine.frame * frames / 3600:.0f} core-hours)")
    if write is not None:
        write.write_text(page(machine, predictions, bounds, rate))


def sample_run(folder: Path) -> Path:
    """Process a simulated run of 4-megapixel frames twice, so that its times are of warm kernels; return the second."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path}

    def xfelproc(*arguments: str) -> None:
        done = subprocess.run([sys.executable, "-m", "xfelproc", *arguments], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"xfelproc {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")

    data = os.environ.get("XFELPROC_TEST_DATA", str(ROOT.parent / "shared" / "data"))
    frames = [f for f in sorted((Path(data) / "stills_nanobragg").glob("*.h5")) if f.name != "truth.h5"]
    if frames:
        job = folder / "job.toml"
        geometry = sorted((Path(data) / "stills_nanobragg").glob("*.geom"))[0]
        names = ", ".join(json.dumps(str(f)) for f in frames)
        job.write_text(
            f"[input]\nfiles = [{names}]\ngeometry = {json.dumps(str(geometry))}\n[index]\ncell = [79.1, 79.1, 38.0, 90, 90, 90]\n"
            'space_group = "P 43 21 2"\n[execution]\ndriver = "inline"\nunit_size = 20\n[report]\nenabled = false\n'
        )
    else:
        xfelproc("simulate", "demo", "-o", str(folder / "data"))
        job = folder / "data" / "job.toml"
    for name in ("cold", "warm"):
        xfelproc("run", str(job), "-o", str(folder / name), "--driver", "inline", "--only", "process")
    return folder / "warm"


def main() -> None:
    """Parse and go."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["rate", "model", "rank"])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--wanted", type=float, default=1100.0, help="completions a second")
    parser.add_argument("--mpi-ranks", type=int, default=17, help="of which one dispatches; the others sleep, so that many fit")
    parser.add_argument("--run", type=Path, help="run directory whose shards give the frames' times (default: one is made)")
    parser.add_argument("--frames", type=int, nargs="+", default=list(JOBS))
    parser.add_argument("--ranks", type=int, nargs="+", default=list(RANKS))
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    if given.what == "rank":
        rank_main(given.seconds, given.wanted)
        return
    rate = show_rate(given.seconds, given.wanted, given.mpi_ranks)
    if given.what == "model":
        with tempfile.TemporaryDirectory() as folder:
            machine = measure_machine(given.run or sample_run(Path(folder)), rate.cost)
        print(json.dumps(asdict(replace(machine))))
        show_model(machine, given.write, rate, given.frames, given.ranks)


if __name__ == "__main__":
    main()
