"""What a command does before its own imports: start the fork server, which imports meanwhile what the workers need."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path

PRELOAD = (
    "xfelproc.stages.execute",
    "xfelproc.io.sources.hdf5",
    "xfelproc.algorithms.calibration",
    "xfelproc.algorithms.spotfinding",
    "xfelproc.algorithms.indexing",
    "xfelproc.algorithms.refinement",
    "xfelproc.algorithms.integration",
)
"""Modules that every worker needs."""


def start_early(job: Path, driver: str | None, overrides: Sequence[str]) -> None:
    """Start the fork server if the job will use it; a job that cannot be read is complained about later."""
    if driver is None:
        if any(text.startswith("execution") for text in overrides):
            return
        try:
            driver = tomllib.loads(job.read_text()).get("execution", {}).get("driver", "pool")
        except (OSError, ValueError, AttributeError):
            return
    if driver == "pool":
        from xfelproc.drivers.pool import start_server

        start_server(PRELOAD)
