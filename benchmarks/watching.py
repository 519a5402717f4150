"""What it costs to keep journal and metrics of a run of 20 000 units, and to watch it: ``python benchmarks/watching.py``."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from xfelproc.run.journal import Journal, JournalTail
from xfelproc.run.metrics import MetricsFile
from xfelproc.run.progress import Progress

UNITS, FRAMES = 20_000, 500
COUNTS = {"FAILED": 0, "BLANK": 100, "HIT": 100, "INDEXED": 0, "INTEGRATED": 300, "LATTICES": 310, "REFLECTIONS": 100_000}


def write(run: Path, listener: Callable[[dict[str, Any]], None] | None) -> float:
    """Return the CPU time in s of a whole journal."""
    (run / "journal.jsonl").unlink(missing_ok=True)
    journal, begun = Journal(run, listener), time.process_time()
    journal.write("start", frames=UNITS * FRAMES, units=UNITS, driver="mpi", workers=4096)
    journal.write("stage", stage="process", units=UNITS, done=0, frames=0, counts={}, lineage="x")
    for unit in range(UNITS):
        journal.write("unit", stage="process", unit=unit, counts=COUNTS, seconds=12.3456, worker="node17/12345")
    journal.close()
    return time.process_time() - begun


def main() -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        run, sizes = Path(folder), np.full(UNITS, FRAMES)
        alone, both = write(run, None), write(run, MetricsFile(run, Progress(sizes)).event)
        print(f"a unit: {1e6 * alone / UNITS:.1f} us CPU for the journal, {1e6 * (both - alone) / UNITS:.1f} more for the metrics")
        progress, tail, begun = Progress(sizes), JournalTail(run), time.process_time()
        for event in tail.poll():
            progress.feed(event)
        first = time.process_time() - begun
        begun = time.process_time()
        again = sum(1 for _ in tail.poll())
        print(f"watching: {first:.3f} s CPU at first, {1e3 * (time.process_time() - begun):.3f} ms then ({again} new events)")


if __name__ == "__main__":
    main()
