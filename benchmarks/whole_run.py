"""Speed of whole runs, printed as CPU time a frame and as a multiple of reading and decoding alone.

    python benchmarks/whole_run.py [--data FOLDER] [--write docs/explanation/performance.md] [--only steps runs start pool memory]

Every figure is CPU time (user + system) of the processes that did the work, unless it says wall; ratios are taken in one run.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np

from xfelproc.algorithms.calibration import Calibrate
from xfelproc.algorithms.indexing import Index
from xfelproc.algorithms.integration import Integrate
from xfelproc.algorithms.refinement import Refine
from xfelproc.algorithms.spotfinding import FindSpots
from xfelproc.io.shards import read_frames
from xfelproc.io.sources import open_source
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.models.conventions import FrameStatus
from xfelproc.models.frames import CellTarget
from xfelproc.stages.stills import STEPS, Stills, process

ROOT = Path(__file__).resolve().parents[1]
CELL = (79.1, 79.1, 38.0, 90.0, 90.0, 90.0)
SPACE_GROUP = "P 43 21 2"
Row = tuple[str, str, str, str]


def data_folder(given: str | None) -> Path:
    """Return the folder of real test data."""
    return Path(given or os.environ.get("XFELPROC_TEST_DATA", ROOT.parent / "shared" / "data"))


def environment() -> dict[str, str]:
    """Return an environment in which ``python -m xfelproc`` is this checkout."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


MPIEXEC = [str(Path(sys.executable).with_name("mpiexec")), "--oversubscribe", "--allow-run-as-root", "-n"]


def run_command(arguments: Sequence[str], folder: Path, launcher: Sequence[str] = ()) -> tuple[float, float]:
    """Run ``xfelproc`` with arguments; return wall and CPU seconds."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [*launcher, sys.executable, "-m", "xfelproc", *arguments], cwd=folder, env=environment(), capture_output=True, text=True
    )
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"xfelproc {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def write_job(folder: Path, files: Sequence[Path], geometry: Path, cell: bool = True, extra: str = "") -> Path:
    """Write a job over files of the stills_nanobragg kind."""
    names = ", ".join(json.dumps(str(f)) for f in files)
    index = f'[index]\ncell = {list(CELL)}\nspace_group = "{SPACE_GROUP}"\n' if cell else ""
    job = folder / "job.toml"
    job.write_text(f'recipe = "stills"\n[input]\nfiles = [{names}]\ngeometry = {json.dumps(str(geometry))}\n{index}{extra}')
    return job


def measure_steps(data: Path, repeats: int = 5) -> tuple[list[Row], float]:
    """Time each step on warm kernels, frame by frame, the least of the repeats; return rows and the time of reading (ms)."""
    folder = data / "stills_nanobragg"
    source = open_source(folder / "stills.h5", SourceSettings(geometry=folder / "stills.geom"))
    stills = Stills(Calibrate(), FindSpots(), Index(), Refine(), Integrate(), CellTarget(CELL, SPACE_GROUP))
    constants = stills.calibrate.constants(source.experiment(0).detector, source.static_mask())
    times = np.full((repeats + 1, source.n_frames, len(STEPS)), np.inf)
    hits = np.zeros(source.n_frames, dtype=bool)
    for repeat in range(repeats + 1):
        for index in range(source.n_frames):
            begun = time.process_time()
            frame = source.read(index)
            times[repeat, index, 0] = 1e3 * (time.process_time() - begun)
            result, _ = process(stills, frame, constants)
            times[repeat, index, 1:] = result.times
            hits[index] = result.status == FrameStatus.INTEGRATED
    best = times[1:].min(axis=0)
    reading = float(best[:, 0].mean())
    rows: list[Row] = []
    for label, chosen, required in (("blank", ~hits, "≤ 5 ms"), ("hit, cell known", hits, "≤ 9 ms")):
        mean = best[chosen].mean(axis=0)
        detail = ", ".join(f"{name} {value:.2f}" for name, value in zip(STEPS, mean, strict=True))
        total = float(mean[1:].sum())
        rows.append(
            (f"{label}, reading aside ({chosen.sum()} frames)", required, f"{total:.2f} ms: {detail}", f"{total / reading:.2f}")
        )
    return rows, reading


def measure_runs(data: Path, reading: float) -> list[Row]:
    """Time the command from file to shards, and what is reported apart."""
    folder = data / "stills_nanobragg"
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        job = write_job(work, [folder / "stills.h5"], folder / "stills.geom")
        rows: list[Row] = []
        command = ["run", str(job), "--driver", "inline", "--only", "process", "--output"]
        run_command([*command, "warm"], work)
        for label, output in (("first", "one"), ("second", "two")):
            wall, cpu = run_command([*command, output], work)
            shards = sorted((work / output / "shards" / "process").rglob("*.h5"))
            times = np.concatenate([read_frames(path)["times"].sum(axis=1) for path in shards])
            rows.append(
                (
                    f"stills_nanobragg, 60 frames from file to shards, {label} warm run",
                    "≤ 13 ms",
                    f"{times.mean():.2f} ms a frame (median {np.median(times):.2f}); command {cpu:.2f} s CPU, {wall:.2f} s wall",
                    f"{times.mean() / reading:.2f}",
                )
            )
        many = [work / f"copy{k:02d}.h5" for k in range(10)]
        for path in many:
            path.symlink_to(folder / "stills.h5")
        job = write_job(work, many, folder / "stills.geom", extra="[report]\nenabled = false\n")
        one = run_command(
            ["run", str(write_one(work, folder)), "--driver", "inline", "--only", "process", "--output", "base"], work
        )[1]
        ten = run_command(["run", str(job), "--driver", "inline", "--only", "process", "--output", "ten"], work)[1]
        slope = 1e3 * (ten - one) / (9 * 60)
        rows.append(
            (
                "the same from the difference of 600 and 60 frames (everything a frame costs, shards and journal included)",
                "≤ 13 ms",
                f"{slope:.2f} ms a frame; start-up {one - 60e-3 * slope:.2f} s",
                f"{slope / reading:.2f}",
            )
        )
        merge = run_command(["run", str(job), "--driver", "inline", "--output", "ten"], work)[1]
        rows.append(("merging these 480 hits, start-up included", "", f"{merge:.2f} s CPU", ""))
        return rows


def write_one(work: Path, folder: Path) -> Path:
    """Write a job over the one file, beside the other."""
    other = work / "one_file"
    other.mkdir(exist_ok=True)
    return write_job(other, [folder / "stills.h5"], folder / "stills.geom", extra="[report]\nenabled = false\n")


def measure_start(data: Path) -> list[Row]:
    """Time from the start of a warm command to its first published unit of one frame."""
    folder = data / "stills_nanobragg"
    found = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        job = write_job(work, [folder / "stills.h5"], folder / "stills.geom", extra="[execution]\nunit_size = 1\n")
        for attempt in range(4):
            command = [sys.executable, "-m", "xfelproc", "run", str(job), "--driver", "inline", "--only", "process"]
            begun = time.time()
            child = subprocess.Popen(
                [*command, "--set", 'input.frames="1:2"', "--output", f"run{attempt}"],
                cwd=work,
                env=environment(),
                stdout=subprocess.DEVNULL,
            )
            child.wait()
            shards = list((work / f"run{attempt}" / "shards" / "process").rglob("*.h5"))
            found.append(shards[0].stat().st_mtime - begun)
    return [("start of a warm command to its first frame done (wall)", "≤ 4 s", f"{statistics.median(found[1:]):.2f} s", "")]


def measure_workers(data: Path, driver: str, copies: int = 60) -> list[Row]:
    """Compare one and two workers on the process stage, from the first to the last unit published.

    3600 frames make units of 28 frames, half a second each: the eight frames a unit of a short run has
    measure Dask's scheduler, who shares the two cores with the workers (7 ms a task).
    """
    folder = data / "stills_nanobragg"
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        files = [work / f"copy{k:02d}.h5" for k in range(copies)]
        for path in files:
            path.symlink_to(folder / "stills.h5")
        job = write_job(work, files, folder / "stills.geom", extra="[report]\nenabled = false\n")
        rate: dict[int, list[float]] = {1: [], 2: []}
        for attempt in range(3):
            for workers in (1, 2):
                output = f"run{attempt}{workers}"
                command = ["run", str(job), "--driver", driver, "--workers", str(workers), "--only", "process", "--output", output]
                run_command(command, work, [*MPIEXEC, str(workers + 1)] if driver == "mpi" else [])
                stamps = sorted(path.stat().st_mtime for path in (work / output / "shards" / "process").rglob("*.h5"))
                steady = stamps[len(stamps) // 8 :]
                rate[workers].append((len(steady) - 1) / (steady[-1] - steady[0]))
                shutil.rmtree(work / output)
        ratios = [two / one for one, two in zip(rate[1], rate[2], strict=True)]
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        text = f"{statistics.median(ratios):.2f} (median of {each}); one worker {max(rate[1]):.1f} units/s"
        return [(f"two workers of {driver} against one, units a second of wall time, first eighth left out", "≥ 1.9", text, "")]


def measure_memory(data: Path) -> list[Row]:
    """Largest resident size of an inline run of 60 and of 1200 frames."""
    folder = data / "stills_nanobragg"
    sizes = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for copies in (1, 20):
            files = [work / f"copy{copies}_{k:02d}.h5" for k in range(copies)]
            for path in files:
                path.symlink_to(folder / "stills.h5")
            job = write_job(work, files, folder / "stills.geom", extra="[report]\nenabled = false\n")
            code = (
                "import resource, sys; from xfelproc.cli.main import main\n"
                "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
                "print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
            )
            arguments = ["run", str(job), "--driver", "inline", "--only", "process", "--output", f"m{copies}"]
            done = subprocess.run(
                [sys.executable, "-c", code, *arguments], cwd=work, env=environment(), capture_output=True, text=True, check=True
            )
            sizes[60 * copies] = int(done.stdout.rsplit("PEAK", 1)[1]) / 1024
    text = ", ".join(f"{n} frames {size:.0f} MiB" for n, size in sizes.items())
    return [("memory of a worker (largest resident size)", "≤ 1 GiB", text, "")]


def as_markdown(rows: Sequence[Row], reading: float) -> str:
    """Return the page."""
    lines = [
        "# Performance",
        "",
        "Made by `python benchmarks/whole_run.py --write docs/explanation/performance.md` on `stills_nanobragg`",
        "(2000 x 2000 uint16, bitshuffle-lz4, 48 hits and 12 blanks). CPU time on one core, unless it says wall.",
        f"Reading and decoding alone takes {reading:.2f} ms a frame: the last column is the multiple of it.",
        "",
        "| figure | required | measured | times reading |",
        "|---|---|---|---|",
    ]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--only", nargs="*", default=["steps", "runs", "start", "pool", "memory"])
    options = parser.parse_args()
    data = data_folder(options.data)
    rows, reading = measure_steps(data)
    parts: dict[str, Any] = {
        "runs": lambda: measure_runs(data, reading),
        "start": lambda: measure_start(data),
        "pool": lambda: measure_workers(data, "pool"),
        "mpi": lambda: measure_workers(data, "mpi"),
        "dask": lambda: measure_workers(data, "dask"),
        "memory": lambda: measure_memory(data),
    }
    for name in options.only:
        if name in parts:
            rows += parts[name]()
    text = as_markdown(rows, reading)
    print(text)
    if options.write:
        notes = options.write.read_text().partition("\n## ") if options.write.exists() else ("", "", "")
        options.write.write_text(text + notes[1] + notes[2])


if __name__ == "__main__":
    main()
