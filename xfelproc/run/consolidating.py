"""A finished run as one Zarr group."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from xfelproc.io.consolidate import Consolidated, WholeShards, consolidate
from xfelproc.io.shards import shard_path
from xfelproc.models.conventions import FrameStatus, ReflectionFlag, SpotFlag
from xfelproc.run.exporting import FinishedRun
from xfelproc.run.lineage import versions
from xfelproc.run.target import recorded_target

NOT_OF_THE_RESULT = ("execution", "report")
"""Sections of the job that the tables do not depend on."""


def consolidate_run(folder: Path, output: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> Consolidated:
    """Write all tables of a run to the Zarr group ``output``; see `io.consolidate`.

    Raises
    ------
    ConfigError
        If this is no finished run, or the output is there already.
    DataError
        If a shard is damaged.
    OutputError
        If the output cannot be written.
    """
    run = FinishedRun.open(folder)
    manifest = run.manifest
    shards = [shard_path(folder, run.stage, unit) for unit in range(manifest.n_units)]
    return consolidate(
        WholeShards(shards),
        len(manifest.sources),
        manifest.sources.path,
        output,
        _attributes(run),
        progress=lambda done: progress(done, manifest.n_units),
    )


def _attributes(run: FinishedRun) -> dict[str, Any]:
    target = recorded_target(run.config, run.directory)
    job = {name: value for name, value in run.config.resolved().items() if name not in NOT_OF_THE_RESULT}
    flags = {kind.__name__: {member.name: member.value for member in kind} for kind in (FrameStatus, SpotFlag, ReflectionFlag)}
    return {
        "title": "tables of an xfelproc run",
        "versions": versions(),
        "job": job,
        "cell": None if target.cell is None else list(target.cell),
        "space_group": target.space_group,
        "flags": flags,
        "conventions": "laboratory frame as imgCIF and DIALS: the beam travels towards -z, y is up; pixel coordinates "
        "(fast, slow), the first pixel's centre at (0.5, 0.5); rows count from 0",
    }
