"""What a completion costs the dispatcher: the real loop and the real journal, with units that do nothing.

``python benchmarks/dispatch_rate.py`` completes 1000 units a second for 5 minutes with 8192 in flight, as of 4096 workers; a
thread ends them, so that the figures are the loop's and the journal's. ``--driver pool`` sends them through two real workers
instead, as fast as they come; ``mpiexec -n 6 python benchmarks/dispatch_rate.py --driver mpi --unit 0.0045`` through
ranks whose units take 4.5 ms.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections import deque
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np

from xfelproc.drivers import mpi
from xfelproc.drivers.base import Driver
from xfelproc.drivers.pool import PoolDriver
from xfelproc.run.journal import Journal
from xfelproc.run.loop import Dispatch
from xfelproc.run.metrics import MetricsFile
from xfelproc.run.progress import Progress
from xfelproc.stages.execute import UnitSummary

COUNTS = dict.fromkeys(("FAILED", "BLANK", "HIT", "INDEXED", "INTEGRATED", "LATTICES", "REFLECTIONS"), 3)
REASON = "4 spots, fewer than spots.min_spots = 10; " + "x" * 560


def nothing(unit: int, seconds: float = 0.0) -> UnitSummary:
    """A summary of 2 kB, pickled."""
    time.sleep(seconds)
    return UnitSummary("process", unit, COUNTS, 0.5, "12345", tuple((f"{i} {REASON}", 1) for i in range(3)))


class Paced(Executor):
    """Ends what it is given at a steady rate."""

    def __init__(self, rate: float) -> None:
        self._given: deque[tuple[Future[Any], tuple[Any, ...]]] = deque()
        self._rate, self._ended = rate, threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._given.append((future, args))
        return future

    def end(self) -> None:
        self._ended.set()

    def _run(self) -> None:
        begun, n = time.monotonic(), 0
        while not self._ended.wait(0.005):
            due = int((time.monotonic() - begun) * self._rate)
            while n < due and self._given:
                future, args = self._given.popleft()
                future.set_result(nothing(*args))
                n += 1
            n = due


class PacedDriver:
    """As many workers as one likes."""

    name, isolated, restartable, elastic = "paced", True, True, False

    def __init__(self, workers: int, rate: float) -> None:
        self.workers, self._executor = workers, Paced(rate)

    def executor(self) -> Executor:
        return self._executor

    def casualties(self) -> set[int] | None:
        return None

    def discard(self, code: int = 1) -> None:
        self._executor.end()

    def close(self) -> None:
        self._executor.end()


def resident() -> float:
    """MB of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def measure(driver: Driver, units: int, seconds: float, window: int, run: Path) -> None:
    (run / "logs").mkdir()
    journal = Journal(run, MetricsFile(run, Progress(np.full(units, 8))).event)
    memory: list[tuple[float, float]] = []
    begun, cpu, process = time.monotonic(), time.thread_time(), time.process_time()

    def on_done(summary: UnitSummary) -> None:
        journal.write("unit", stage=summary.stage, unit=summary.unit, counts=summary.counts, seconds=0.5, worker=summary.worker)
        for reason, count in summary.failures:
            journal.write("failure", unit=summary.unit, count=count, reason=reason)
        if not memory or time.monotonic() - memory[-1][0] > 20:
            memory.append((time.monotonic(), resident()))

    def submit(executor: Executor, unit: int, quarantine: Any) -> Future[UnitSummary]:
        return executor.submit(nothing, unit, seconds)

    Dispatch(driver, submit, on_done, lambda: (), lambda: None, print, window=window).run(range(units))
    wall = time.monotonic() - begun
    cpu, process = time.thread_time() - cpu, time.process_time() - process
    journal.close()
    print(f"{driver.name}: {units} units, {units / wall:.0f} a second for {wall:.0f} s")
    load = f"{100 * cpu / wall:.0f} % of a core, the process {100 * process / wall:.0f} %"
    print(f"loop and journal {1e6 * cpu / units:.0f} µs a unit, {load}")
    print("memory, MB, every 20 s:", *(f"{value:.0f}" for _, value in memory))
    print(f"journal {journal.path.stat().st_size / 1e6:.0f} MB")
    driver.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--driver", choices=("paced", "pool", "mpi"), default="paced")
    parser.add_argument("--seconds", type=float, default=300.0, help="how long, at the rate")
    parser.add_argument("--rate", type=float, default=1000.0, help="units a second")
    parser.add_argument("--workers", type=int, default=4096, help="of the driver paced")
    parser.add_argument("--unit", type=float, default=0.0, help="seconds a unit takes a real worker")
    options = parser.parse_args()
    units = int(options.rate * options.seconds)
    with tempfile.TemporaryDirectory() as folder:
        if options.driver == "paced":
            measure(PacedDriver(options.workers, options.rate), units, 0.0, 2, Path(folder))
        elif options.driver == "pool":
            measure(PoolDriver(2), units, options.unit, 50, Path(folder))
        else:
            mpi.start()  # the other ranks serve, and stay in it
            measure(mpi.MPIDriver(), units, options.unit, 8, Path(folder))
            mpi.finish(0)
