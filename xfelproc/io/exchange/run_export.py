"""What a run's tables are in other programs' formats, frame by frame."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from xfelproc.io.exchange.dials_refl import LatticeReflections
from xfelproc.io.exchange.stream import StreamChunk, StreamCrystal, camera_length
from xfelproc.models.conventions import FrameStatus
from xfelproc.models.experiment import Crystal, Experiment, as_matrix, as_vector
from xfelproc.models.frames import FrameRef, UnitResult
from xfelproc.models.tables import IndexedTable, ReflectionTable, SpotTable


def lattice_rows(result: UnitResult, row: int) -> list[int]:
    """Return the rows of the LatticeTable that belong to a frame (row of the FrameTable)."""
    return [int(i) for i in np.flatnonzero(result.lattices["frame"] == row)]


def crystal_of(result: UnitResult, lattice: int) -> Crystal:
    """Return a row of the LatticeTable as a crystal."""
    table = result.lattices
    return Crystal(
        as_matrix(table["A"][lattice]),
        str(table["space_group"][lattice]),
        float(table["domain_size"][lattice]),
        float(table["half_mosaicity"][lattice]),
    )


def _reflections(result: UnitResult, lattice: int) -> ReflectionTable:
    return result.reflections.select(result.reflections["lattice"] == lattice)


def frame_chunk(path: str, event: str, serial: int, experiment: Experiment, result: UnitResult, row: int) -> StreamChunk:
    """Return a frame as a chunk of a stream.

    Parameters
    ----------
    path, event, serial
        See `StreamChunk`.
    experiment
        Models of the frame.
    result, row
        The unit's tables, and the frame's row among its frames.
    """
    lattices = result.lattices
    crystals = tuple(
        StreamCrystal(
            crystal_of(result, lattice),
            _reflections(result, lattice),
            as_vector(lattices["shift"][lattice]),
            float(lattices["d_min"][lattice]),
        )
        for lattice in lattice_rows(result, row)
    )
    return StreamChunk(
        path=path,
        event=event,
        serial=serial,
        hit=bool(result.frames["status"][row] >= FrameStatus.HIT),
        beam=experiment.beam,
        camera_length=camera_length(experiment.detector),
        spots=result.spots.select(result.spots["frame"] == row),
        crystals=crystals,
    )


def dials_lattices(path: str, ref: FrameRef, experiment: Experiment, result: UnitResult, row: int) -> list[LatticeReflections]:
    """Return the lattices of a frame with their refined detector, reflections and indexed spots."""
    found = []
    for number, lattice in enumerate(lattice_rows(result, row)):
        shift, tilt = as_vector(result.lattices["shift"][lattice]), result.lattices["tilt"][lattice]
        models = replace(
            experiment,
            detector=experiment.detector.moved(shift, (float(tilt[0]), float(tilt[1]))),
            crystal=crystal_of(result, lattice),
            identifier=f"{ref.source}-{ref.index}-{number}",
            image=(path, ref.index),
        )
        found.append(lattice_reflections(models, result, lattice))
    return found


def lattice_reflections(models: Experiment, result: UnitResult, lattice: int) -> LatticeReflections:
    """Return a row of the LatticeTable with its models, reflections and indexed spots."""
    reflections = _reflections(result, lattice)
    indexed = result.indexed.select(result.indexed["lattice"] == lattice)
    spots = result.spots.select(indexed["spot"])
    return LatticeReflections(models, reflections, _observed(indexed, spots, reflections), indexed, spots)


def _observed(indexed: IndexedTable, spots: SpotTable, reflections: ReflectionTable) -> NDArray[np.float64]:
    """Return rows of ``reflections`` that have an indexed spot, with its centroid (px) and variances (px²), (m, 5)."""
    at = {tuple(hkl): row for row, hkl in enumerate(reflections["hkl"].tolist())}
    rows = np.array([at.get(tuple(hkl), -1) for hkl in indexed["hkl"].tolist()], dtype=np.int64)
    seen = rows >= 0
    columns = [rows[seen], *(spots[name][seen] for name in ("fast", "slow", "var_fast", "var_slow"))]
    return np.column_stack(columns).astype(np.float64)
