"""Completions a second of the dispatch loop over MPI, the journal on.

``mpiexec --oversubscribe -n 9 python benchmarks/mpi_dispatch.py``

Tasks sleep, so that many ranks fit on a small machine; results have 2 kB. Prints the rate, the dispatcher's share of a core
(all its threads), and how its memory grew from the first tenth to the end.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from xfelproc.drivers.threads import pin_threads

pin_threads()

from xfelproc.drivers import mpi
from xfelproc.run.journal import Journal
from xfelproc.run.loop import Dispatch


def task(unit: int, seconds: float, size: int) -> tuple[int, bytes]:
    time.sleep(seconds)
    return unit, os.urandom(size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long")
    parser.add_argument("--rate", type=float, default=1100.0, help="completions a second to ask for; 0: as many as there can be")
    options = parser.parse_args()
    mpi.start()
    driver = mpi.MPIDriver()
    rate = options.rate or 5000.0
    pause = driver.workers / options.rate if options.rate else 0.0
    units, sizes = int(rate * options.seconds), []
    driver.executor().submit(task, 0, 0.0, 10).result()  # the ranks are there
    with tempfile.TemporaryDirectory() as name:
        journal = Journal(Path(name))

        def on_done(result: tuple[int, bytes]) -> None:
            journal.write("unit", stage="process", unit=result[0], counts={"INTEGRATED": 8}, seconds=0.1, worker="1")
            if result[0] % (units // 10) == 0:
                sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20)

        dispatch = Dispatch(
            driver=driver,
            submit=lambda executor, unit, quarantine: executor.submit(task, unit, pause, 2000),
            on_done=on_done,
            activity=lambda: [],
            forget=lambda: None,
            on_event=lambda word, details: print(word, details),
        )
        begun, cpu = time.monotonic(), time.process_time()
        dispatch.run(range(units))
        wall, cpu = time.monotonic() - begun, time.process_time() - cpu
        journal.close()
    print(
        f"{driver.workers} ranks, {units} tasks of {1e3 * pause:.1f} ms: {units / wall:.0f} completions/s over {wall:.0f} s, "
        f"dispatcher {100 * cpu / wall:.0f} % of a core, memory {sizes[1]:.1f} MB after a tenth, {sizes[-1]:.1f} MB at the end"
    )
    driver.close()
    mpi.finish(0)
    sys.exit(0)


if __name__ == "__main__":
    main()
