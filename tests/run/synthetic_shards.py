"""Runs of synthetic shards, with no frames behind them: for tests and measurements of what is folded over shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.algorithms.merging.synthetic import CELL, observe
from xfelproc.geometry.cells import b_matrix
from xfelproc.geometry.reduction import cell_of
from xfelproc.io.atomic import make_folder
from xfelproc.io.manifest import Manifest, Sources, SourceTable, write_manifest
from xfelproc.io.names import FileNames
from xfelproc.io.shards import ShardHeader, shard_path, write_shard
from xfelproc.models.conventions import FrameStatus
from xfelproc.models.frames import UnitResult
from xfelproc.models.tables import FrameTable, IndexedTable, LatticeTable, ReflectionTable, SpotTable
from xfelproc.run.config import Execution
from xfelproc.run.directory import RunDirectory
from xfelproc.run.folding import Gathering
from xfelproc.run.journal import Journal
from xfelproc.run.merging import MergeInput
from xfelproc.run.recipes import make_driver
from xfelproc.run.signals import StopFlag


def make_shards(
    run: Path, n_lattices: int, n_each: int, unit_size: int, file: str = "run_1.h5", draw: int = 0, **options: Any
) -> MergeInput:
    """Write a run of one lattice a frame."""
    offsets = np.append(np.arange(0, n_lattices, unit_size), n_lattices)
    table = SourceTable(1, n_frames=[n_lattices], chunk_frames=[1])
    sources = Sources(FileNames.of(["/data"], [0], [file]), table)
    index = np.arange(n_lattices)
    make_folder(run)
    write_manifest(run / "manifest.h5", Manifest(sources, np.zeros(n_lattices, np.int32), index, offsets))
    for unit, (first, last) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        n = last - first
        reflections, _ = observe(n, n_each, draw=1000 * draw + unit, **options)
        frames = FrameTable(n, index=index[first:last], status=[FrameStatus.INTEGRATED] * n, wavelength=np.full(n, 1.3))
        cell = np.array(CELL) + np.random.default_rng(unit).normal(size=(n, 6)) * [0.1, 0.1, 0.1, 0, 0, 0]
        matrix = np.broadcast_to(b_matrix(CELL), (n, 3, 3))
        lattices = LatticeTable(n, frame=np.arange(n), A=matrix, cell=cell)
        result = UnitResult(frames, SpotTable(0), lattices, IndexedTable(0), reflections)
        counts = {status.name: n * (status == FrameStatus.INTEGRATED) for status in FrameStatus}
        counts |= {"LATTICES": n, "REFLECTIONS": len(reflections)}
        path = shard_path(run, "process", unit)
        make_folder(path.parent)
        write_shard(path, ShardHeader(unit, f"{file} {unit} {n_each}", "", counts, 0.1, path), result)
    return MergeInput(run, len(offsets) - 1)


def write_units(
    run: Path, n_frames: int, unit_size: int, unit: Callable[[int, int], UnitResult], file: str = "run_1.h5"
) -> MergeInput:
    """Write a run of units that ``unit(first frame, last frame + 1)`` makes."""
    offsets = np.append(np.arange(0, n_frames, unit_size), n_frames)
    sources = Sources(FileNames.of(["/data"], [0], [file]), SourceTable(1, n_frames=[n_frames], chunk_frames=[1]))
    make_folder(run)
    write_manifest(run / "manifest.h5", Manifest(sources, np.zeros(n_frames, np.int32), np.arange(n_frames), offsets))
    for number, (first, last) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        result = unit(first, last)
        counts = {status.name: len(result.frames) * (status == FrameStatus.INTEGRATED) for status in FrameStatus}
        counts |= {"LATTICES": len(result.lattices), "REFLECTIONS": len(result.reflections)}
        path = shard_path(run, "process", number)
        make_folder(path.parent)
        write_shard(path, ShardHeader(number, f"{file} {number} {n_frames}", "", counts, 0.1, path), result)
    return MergeInput(run, len(offsets) - 1)


def unit_of_shards(
    first: int, reflections: ReflectionTable, matrices: NDArray[np.float64], wavelength: NDArray[np.float64]
) -> UnitResult:
    """Return a unit of one lattice a frame, with these orientations (n, 3, 3)."""
    n = len(matrices)
    frames = FrameTable(
        n, index=np.arange(first, first + n), status=[FrameStatus.INTEGRATED] * n, wavelength=wavelength, n_lattices=np.ones(n)
    )
    cells = np.array([cell_of(np.linalg.inv(matrix)) for matrix in matrices])
    lattices = LatticeTable(n, frame=np.arange(n), A=matrices, cell=cells)
    return UnitResult(frames, SpotTable(0), lattices, IndexedTable(0), reflections)


def gathering(folder: Path, **execution: Any) -> Gathering:
    """Return what folds need, in a folder of its own."""
    settings = Execution(**{"driver": "inline", **execution})
    directory = RunDirectory(folder)
    make_folder(directory.gather)
    make_folder(directory.merged)
    driver = make_driver(settings, folder / "logs")
    return Gathering(directory, settings, driver, Journal(folder), StopFlag(), lambda word, details: None)
