"""Folds and updates of a run, through its driver: see `stages.fold` for what they are."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xfelproc.drivers.base import Driver
from xfelproc.errors import DataError
from xfelproc.io.inflight import clear_inflight, read_inflight
from xfelproc.io.nodes import Partial, node_path, read_node
from xfelproc.run.config import Execution
from xfelproc.run.directory import RunDirectory
from xfelproc.run.flights import KillsWorkersError
from xfelproc.run.journal import Journal
from xfelproc.run.loop import Dispatch
from xfelproc.run.signals import StopFlag
from xfelproc.run.suspects import Quarantine, SuspectFile
from xfelproc.stages.fold import (
    LEVELS_A_TASK,
    MOST_LEAVES,
    Blocks,
    Fold,
    FoldJob,
    NodeSummary,
    Update,
    activity_name,
    compute_node,
    cut_leaves,
    make_nodes,
)

ITERATIONS_KEPT = 2


@dataclass(frozen=True)
class Gathering:
    """Where folds are computed and published: what they need of a run, or of anything else with a folder and a driver."""

    directory: RunDirectory
    execution: Execution
    driver: Driver
    journal: Journal
    stop: StopFlag
    on_event: Callable[[str, dict[str, Any]], None]
    on_node: Callable[[NodeSummary], None] = lambda summary: None
    """Told each node that is done, or found done."""

    def fold(self, fold: Fold, stage: str, iteration: int, blocks: Blocks, offsets: tuple[int, ...]) -> Path:
        """Compute a fold's nodes that are not there yet; return the path of the last one, which holds the result.

        Parameters
        ----------
        fold
            What to compute.
        stage, iteration
            The nodes are ``gather/<stage>/<iteration>/<level>-<node>.h5``; iterations before the last two are removed.
        blocks
            What to fold over.
        offsets
            Bounds of the leaves in the blocks, from `stages.fold.cut_leaves`.

        Raises
        ------
        ConfigError
            If a unit is not processed yet.
        DataError
            If a shard is damaged, or a node ends its worker again and again.
        Interrupted
            After SIGINT or SIGTERM.
        """
        job = self._job(fold, stage, iteration, blocks, offsets)
        lineages, level = run_level(self, job, 0, [()] * job.n_leaves), 0
        while len(lineages) > 1:
            width = 1 << LEVELS_A_TASK
            level += LEVELS_A_TASK
            lineages = run_level(self, job, level, [tuple(lineages[i : i + width]) for i in range(0, len(lineages), width)])
        sweep(job.folder.parent, iteration)
        return node_path(job.folder, level, 0)

    def update(self, update: Update, stage: str, iteration: int, blocks: Blocks, offsets: tuple[int, ...]) -> tuple[Path, ...]:
        """Publish what ``update`` computes of each leaf; return the nodes' paths in order. See `fold` for the rest."""
        job = self._job(update, stage, iteration, blocks, offsets)
        run_level(self, job, 0, [()] * job.n_leaves)
        sweep(job.folder.parent, iteration)
        return tuple(node_path(job.folder, 0, node) for node in range(job.n_leaves))

    def _job(self, fold: Update, stage: str, iteration: int, blocks: Blocks, offsets: tuple[int, ...]) -> FoldJob:
        self.journal.write("fold", stage=stage, iteration=iteration, leaves=len(offsets) - 1)
        folder = self.directory.gather.absolute() / stage / str(iteration)
        return FoldJob(self.directory.path.absolute(), stage, folder, fold, blocks, offsets)


def run_level(gathering: Gathering, job: FoldJob, level: int, children: list[tuple[str, ...]]) -> list[str]:
    """Compute the nodes of a level, in any order; return their lineages in theirs."""
    task, run, lineages = make_nodes(job), gathering.directory.path, [""] * len(children)
    name = activity_name(job.stage, level)

    def submit(executor: Any, node: int, quarantine: Quarantine) -> Any:
        return executor.submit(compute_node, task(level, node, children[node]))

    def on_done(summary: NodeSummary) -> None:
        lineages[summary.node] = summary.lineage
        gathering.on_node(summary)

    dispatch = Dispatch(
        driver=gathering.driver,
        submit=submit,
        on_done=on_done,
        activity=lambda: [a for a in read_inflight(run) if a.stage == name],
        forget=lambda: clear_inflight(run),
        on_event=gathering.on_event,
        timeout=gathering.execution.unit_timeout,
        stop=gathering.stop,
        window=gathering.execution.window,
        cases=SuspectFile(gathering.directory).cases(name, range(len(children)), lambda node: job.fold.lineage),
    )
    try:
        dispatch.run(range(len(children)))
    except KillsWorkersError as error:
        raise DataError(
            f"stage {job.stage}, part {error.unit} of {len(children)} (level {level}): its worker {error.how} {error.deaths} "
            "times; is there enough memory? A smaller execution.fold_size needs less"
        ) from error
    return lineages


def read_partial(path: Path) -> Partial:
    """Return the arrays of a node."""
    return read_node(path)[1]


def sweep(folder: Path, iteration: int) -> None:
    """Remove the iterations before the last two."""
    for old in folder.iterdir() if folder.is_dir() else ():
        if old.name.isdigit() and int(old.name) <= iteration - ITERATIONS_KEPT:
            shutil.rmtree(old, ignore_errors=True)


def block_leaves(n_blocks: int, most: int = MOST_LEAVES) -> tuple[int, ...]:
    """Return leaves of one block each, or of a few where there are more than ``most``."""
    return cut_leaves(np.ones(n_blocks, dtype=np.int64), max(1, -(-n_blocks // most)))
