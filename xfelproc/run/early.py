"""What a command does before its own imports: start the fork server, which imports meanwhile what the workers need."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Sequence
from pathlib import Path

from xfelproc.errors import ConfigError

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


def make_cache_folder() -> Path | None:
    """Make the folder of compiled kernels that $NUMBA_CACHE_DIR names, before numba does; None if it names none.

    It must be the user's own, as what lies in it is executed.

    Raises
    ------
    ConfigError
        If it cannot be made, or belongs to somebody else.
    """
    name = os.environ.get("NUMBA_CACHE_DIR")
    if not name:
        return None
    folder = Path(name)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.stat()
    except OSError as error:
        raise ConfigError(
            f"NUMBA_CACHE_DIR: {folder} cannot be made: {error.strerror}: name a folder on the node's own disk"
        ) from error
    if state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise ConfigError(
            f"NUMBA_CACHE_DIR: {folder} belongs to somebody else, or others may write into it, and what lies in it is executed: "
            "name another folder"
        )
    return folder
