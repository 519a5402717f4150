"""Memory and time of merging against the number of observations, on synthetic shards.

Run with ``python benchmarks/merging_memory.py FOLDER --lattices 1000 10000 100000 --each 200``; FOLDER is filled and emptied.
The unique reflections are the same in each, so that what grows does so with lattices or observations.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from xfelproc.drivers.threads import pin_threads

pin_threads()

from tests.run.synthetic_shards import gathering, make_shards
from xfelproc.algorithms.merging import Merge
from xfelproc.run.merging import FoundShards, MergeInput, merge_inputs
from xfelproc.run.target import MergingGroup

LATTICES_A_PART = 1000


def part(folder: Path, number: int, lattices: int, each: int) -> MergeInput:
    return make_shards(folder / f"part{number:04d}", lattices, each, 100, f"run_{number}.h5", number, d_min=3.0)


def largest(pid: int) -> float:
    """Return the largest resident size of a process in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def measure(folder: Path, lattices: int, each: int, workers: int, bucket_size: int | None) -> str:
    parts = -(-lattices // LATTICES_A_PART)
    sizes = [min(LATTICES_A_PART, lattices - i * LATTICES_A_PART) for i in range(parts)]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        inputs = list(pool.map(part, [folder] * parts, range(parts), sizes, [each] * parts))
    place = gathering(folder / "merged", driver="pool", workers=workers, bucket_size=bucket_size)
    before, cpu = time.monotonic(), time.process_time()
    found = merge_inputs(place, FoundShards.of(inputs), Merge(), MergingGroup("P 43 21 2", False), folder / "merged" / "merged")
    seconds, cpu = time.monotonic() - before, time.process_time() - cpu
    pids = list(getattr(place.driver.executor(), "_processes", {}))
    worker_size = max(largest(pid) for pid in pids)
    worker_cpu = sum(sum(map(int, Path(f"/proc/{pid}/stat").read_text().split()[13:15])) for pid in pids)
    place.driver.close()
    dispatcher = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert found is not None
    return (
        f"{lattices} lattices, {lattices * each} reflections, {found['overall']['n_unique']} unique: {seconds:.1f} s wall, "
        f"CPU {cpu:.1f} s dispatcher + {worker_cpu / os.sysconf('SC_CLK_TCK'):.1f} s workers; "
        f"largest size {dispatcher:.0f} MiB dispatcher, {worker_size:.0f} MiB a worker; CC1/2 {found['overall']['cc_half']:.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lattices", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--each", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--bucket-size", type=int)
    given = parser.parse_args()
    for lattices in given.lattices:
        pid = os.fork()  # a process for each: the largest size is that of its own work
        if pid == 0:
            print(measure(given.folder / str(lattices), lattices, given.each, given.workers, given.bucket_size), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        shutil.rmtree(given.folder / str(lattices))


if __name__ == "__main__":
    main()
