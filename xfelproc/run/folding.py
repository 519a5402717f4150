"""Folds and updates of a run, through its driver: see `stages.fold` for what they are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xfelproc.errors import DataError
from xfelproc.io.inflight import clear_inflight, read_inflight
from xfelproc.io.nodes import Partial, node_path, read_node
from xfelproc.run.flights import KillsWorkersError
from xfelproc.run.loop import Dispatch
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

if TYPE_CHECKING:
    from xfelproc.run.session import Session

ITERATIONS_KEPT = 2


def run_fold(session: Session, fold: Fold, stage: str, iteration: int, blocks: Blocks, offsets: tuple[int, ...]) -> Path:
    """Compute a fold's nodes that are not there yet; return the path of the last one, which holds the result."""
    job = _fold_job(session, fold, stage, iteration, blocks, offsets)
    lineages, level = run_level(session, job, 0, [()] * job.n_leaves), 0
    while len(lineages) > 1:
        width = 1 << LEVELS_A_TASK
        level += LEVELS_A_TASK
        lineages = run_level(session, job, level, [tuple(lineages[i : i + width]) for i in range(0, len(lineages), width)])
    sweep(job.folder.parent, iteration)
    return node_path(job.folder, level, 0)


def run_update(
    session: Session, update: Update, stage: str, iteration: int, blocks: Blocks, offsets: tuple[int, ...]
) -> tuple[Path, ...]:
    """Compute an update's leaves that are not there yet; return their paths, in order."""
    job = _fold_job(session, update, stage, iteration, blocks, offsets)
    run_level(session, job, 0, [()] * job.n_leaves)
    sweep(job.folder.parent, iteration)
    return tuple(node_path(job.folder, 0, node) for node in range(job.n_leaves))


def _fold_job(session: Session, fold: Update, stage: str, iteration: int, blocks: Blocks, offsets: tuple[int, ...]) -> FoldJob:
    run = session.directory.path.absolute()
    session.journal.write("fold", stage=stage, iteration=iteration, leaves=len(offsets) - 1)
    return FoldJob(run, stage, session.directory.gather.absolute() / stage / str(iteration), fold, blocks, offsets)


def run_level(session: Session, job: FoldJob, level: int, children: list[tuple[str, ...]]) -> list[str]:
    """Compute the nodes of a level, in any order; return their lineages in theirs."""
    task, run, lineages = make_nodes(job), session.directory.path, [""] * len(children)
    name = activity_name(job.stage, level)

    def submit(executor: Any, node: int, quarantine: Quarantine) -> Any:
        return executor.submit(compute_node, task(level, node, children[node]))

    def on_done(summary: NodeSummary) -> None:
        lineages[summary.node] = summary.lineage

    dispatch = Dispatch(
        driver=session.driver,
        submit=submit,
        on_done=on_done,
        activity=lambda: [a for a in read_inflight(run) if a.stage == name],
        forget=lambda: clear_inflight(run),
        on_event=session.journal_event,
        timeout=session.config.execution.unit_timeout,
        stop=session.stop,
        window=session.config.execution.window,
        cases=SuspectFile(session.directory).cases(name, range(len(children)), lambda node: job.fold.lineage),
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


def shard_leaves(session: Session) -> tuple[int, ...]:
    """Return the leaves of the run's units: a function of the manifest and of ``execution.fold_size``."""
    return cut_leaves(np.diff(session.manifest.offsets), session.config.execution.fold_size)


def block_leaves(n_blocks: int) -> tuple[int, ...]:
    """Return leaves of one block each, or of a few where there are more than 256."""
    return cut_leaves(np.ones(n_blocks, dtype=np.int64), -(-n_blocks // MOST_LEAVES) if n_blocks else 1)
