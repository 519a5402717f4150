"""What a command does before its own imports: start workers, which import meanwhile what they need, or become one."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    """Start what the job's driver needs; a job that cannot be read is complained about later.

    With the driver ``mpi`` this returns in rank 0 alone: the other ranks compute, and exit.
    """
    start_driver(driver or _driver(job, overrides))


def start_frames(inputs: Sequence[str], run: Path | None, driver: str | None, overrides: Sequence[str]) -> None:
    """Start what a command over frames needs; see `start_early`. Its frames are those of a job file, of a run, or files."""
    job = Path(inputs[0]) if inputs and inputs[0].endswith(".toml") else Path(os.devnull) if run is None else run / "job.toml"
    start_early(job, driver, overrides)


def start_driver(driver: str) -> None:
    """Start what a driver needs.

    Raises
    ------
    ConfigError
        If the command was started in several ranks and the driver does not use them, or there is no MPI.
    """
    from xfelproc.drivers import mpi

    mpi.check_launch(driver)
    if driver == "mpi":
        mpi.start(PRELOAD)
    elif driver == "pool":
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


def _driver(job: Path, overrides: Sequence[str]) -> str:
    """Return the driver of a job file with ``--set``, or nothing where that cannot be told."""
    try:
        given: Any = tomllib.loads(job.read_text()).get("execution", {}).get("driver", "pool")
    except (OSError, ValueError, AttributeError):
        given = "pool"
    for text in overrides:
        key, _, value = text.partition("=")
        if key.strip() == "execution.driver":
            given = value.strip().strip("\"'")
        elif key.strip() == "execution":
            return ""
    return str(given)
