"""Combining lattices of many shards: what workers do. See `run.combining` for the whole.

Three updates go over the shards: `Survey` says of each lattice what selection needs, `Models` which beam and detector the
selected ones have, `Parts` makes the pieces of the files. What is kept of a lattice between them is some hundred bytes.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.io.exchange.dials_pieces import item_text
from xfelproc.io.exchange.dials_refl import (
    COLUMN_KINDS,
    INDEXED_KINDS,
    TYPES,
    LatticeReflections,
    indexed_columns,
    integrated_columns,
)
from xfelproc.io.exchange.dials_write import beam_content, crystal_content, detector_content, imageset_content
from xfelproc.io.exchange.run_export import crystal_of, lattice_reflections
from xfelproc.io.manifest_reader import ManifestReader
from xfelproc.io.nodes import Partial, read_node
from xfelproc.io.sources.base import FrameSource
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.models.experiment import Beam, Detector, Experiment, as_vector
from xfelproc.stages.combine_models import BEAM, beam_of, beam_row
from xfelproc.stages.fold import Shards, UnitReader
from xfelproc.stages.unit_sources import Opener

VERSION = 1
KINDS = {
    "indexed": {**INDEXED_KINDS, "imageset_id": "int"},
    "integrated": {**COLUMN_KINDS, "imageset_id": "int"},
}
"""Columns of the reflections, with their types."""
TEXTS = ("experiment", "imageset", "beam", "detector", "crystal")


@dataclass(frozen=True)
class CombinedRun:
    """A run: its folder, the settings its files are opened with, and what stands before its lattices' identifiers.

    ``place`` gives a frame's detector the refined geometry; None: it was not refined.
    """

    folder: Path
    settings: SourceSettings
    prefix: str
    place: Callable[[Detector], Detector] | None = None


@dataclass(frozen=True)
class Chosen:
    """The selected lattices of a block: their numbers in the whole, ascending, their rows, and the unit's tables."""

    numbers: NDArray[np.int64]
    rows: NDArray[np.int64]
    reader: UnitReader


@dataclass(frozen=True)
class ChosenLattices:
    """What `Models` and `Parts` share: runs, shards, and the file that says which lattices are chosen."""

    runs: tuple[CombinedRun, ...]
    shards: Shards
    selection: Path
    selection_lineage: str
    opener: Opener

    @property
    def lineage(self) -> str:
        """Hash of which lattices these are, and of what their files are opened with."""
        settings = [run.settings.model_dump_json() + run.prefix for run in self.runs]
        return _hash(self.selection_lineage, *settings)

    def blocks(self, readers: Iterable[UnitReader]) -> Iterator[Chosen]:
        """Yield the units that have chosen lattices."""
        arrays = read_node(self.selection, ("block", "row"))[1]
        for reader in readers:
            first, last = np.searchsorted(arrays["block"], [reader.block, reader.block + 1])
            if last > first:
                yield Chosen(np.arange(first, last), arrays["row"][first:last].astype(np.int64), reader)

    def run_of(self, chosen: Chosen) -> CombinedRun:
        """Return the run that a unit is of."""
        return self.runs[self.shards.place(chosen.reader.block)[0]]

    def paths(self, chosen: Chosen) -> tuple[NDArray[np.int32], NDArray[np.int64], dict[int, str]]:
        """Return of each frame of a unit the source's number and the index in it, and the sources' paths."""
        reader = ManifestReader(self.run_of(chosen).folder / "manifest.h5")
        try:
            given = reader.unit_input(chosen.reader.unit)
        finally:
            reader.close()
        names = {int(number): given.sources.path(row) for row, number in enumerate(given.numbers)}
        return given.frame_source, given.frame_index, names


@dataclass(frozen=True)
class Models:
    """Beam and detector, as recorded, of each chosen lattice, and how its refinement moved the detector."""

    chosen: ChosenLattices

    @property
    def lineage(self) -> str:
        """Hash of what the result depends on beside the shards."""
        return _hash("models", VERSION, self.chosen.lineage)

    def accumulate(self, blocks: Iterable[UnitReader]) -> Partial:
        """Return numbers of beams and detectors; the detectors themselves are pickled."""
        found = _FoundModels()
        for chosen in self.chosen.blocks(blocks):
            self._unit(chosen, found)
        return found.arrays()

    def _unit(self, chosen: Chosen, found: _FoundModels) -> None:
        sources, indices, names = self.chosen.paths(chosen)
        lattices = chosen.reader.lattices().select(chosen.rows)
        run = self.chosen.run_of(chosen)
        current: tuple[int, FrameSource] | None = None
        try:
            for row, frame in enumerate(lattices["frame"].tolist()):
                number = int(sources[frame])
                if current is None or current[0] != number:
                    if current is not None:
                        current[1].close()
                    current = (number, self.chosen.opener(names[number], run.settings))
                models = current[1].experiment(int(indices[frame]))
                if run.place is not None:
                    models = replace(models, detector=run.place(models.detector))
                found.add(models, lattices["shift"][row], lattices["tilt"][row])
        finally:
            if current is not None:
                current[1].close()


class _FoundModels:
    """Gathers the models of lattices: distinct detectors are kept once."""

    def __init__(self) -> None:
        self._beams: list[list[float]] = []
        self._moves: list[list[float]] = []
        self._detector: list[int] = []
        self._known: dict[Detector, int] = {}
        self._last: tuple[Detector, int] | None = None

    def add(self, models: Experiment, shift: NDArray[np.float64], tilt: NDArray[np.float64]) -> None:
        if self._last is None or self._last[0] is not models.detector:
            number = self._known.setdefault(models.detector, len(self._known))
            self._last = (models.detector, number)
        self._detector.append(self._last[1])
        self._beams.append(beam_row(models.beam))
        self._moves.append([*shift.tolist(), *tilt.tolist()])

    def arrays(self) -> Partial:
        n, detectors = len(self._beams), tuple(self._known)
        keys = [_hash(repr(detector)).encode() for detector in detectors]
        move = np.array(self._moves, dtype=np.float64).reshape(n, 5)
        beams = np.array(self._beams, dtype=np.float64).reshape(n, BEAM)
        own = [_key(keys[i] + row.tobytes()) for i, row in zip(self._detector, move, strict=True)]
        return {
            "beam": beams,
            "beam_key": np.array([_key(row.tobytes()) for row in beams], np.uint64),
            "move": move,
            "detector": np.array(self._detector, np.int32),
            "detector_key": np.array(own, np.uint64),
            "detectors": np.frombuffer(pickle.dumps(detectors), np.uint8),
        }


def unpickled_detectors(arrays: Partial) -> tuple[Detector, ...]:
    """Return the distinct detectors of a node of `Models`."""
    detectors: tuple[Detector, ...] = pickle.loads(arrays["detectors"].tobytes())
    return detectors


@dataclass(frozen=True)
class Parts:
    """The pieces of DIALS files: columns of reflections as they are in the file, and items of experiment lists as text.

    Parameters
    ----------
    chosen
        The lattices.
    models
        Nodes of `Models`, one a leaf, whose leaves are these.
    offsets
        Bounds of the leaves in the blocks.
    places
        File with the numbers of each lattice's experiment, beam, detector and image set, and which lattice writes the model;
        made by `run.combining`.
    places_lineage
        Its lineage.
    reflections
        ``indexed`` or ``integrated``.
    beam, detector
        In the place of all; None: each lattice its own.
    """

    chosen: ChosenLattices
    models: tuple[Path, ...]
    offsets: tuple[int, ...]
    places: Path
    places_lineage: str
    reflections: str
    beam: Beam | None
    detector: Detector | None

    @property
    def lineage(self) -> str:
        """Hash of what the result depends on beside the shards."""
        shared = [repr(self.beam), repr(self.detector)]
        return _hash("parts", VERSION, self.chosen.lineage, self.places_lineage, self.reflections, *shared)

    def accumulate(self, blocks: Iterable[UnitReader]) -> Partial:
        """Return the pieces of a leaf, those of each batch apart: their names begin with its number."""
        batches: dict[int, _Batch] = {}
        places = read_node(self.places)[1]
        models: Partial | None = None
        first = -1
        for chosen in self.chosen.blocks(blocks):
            if models is None:  # the first chosen lattice of the leaf is the first row of the node
                leaf = int(np.searchsorted(self.offsets, chosen.reader.block, side="right")) - 1
                models, first = read_node(self.models[leaf])[1], int(chosen.numbers[0])
                detectors = unpickled_detectors(models)
            self._unit(chosen, places, _Rows(models, detectors, first), batches)
        return {f"{number}:{name}": values for number, batch in batches.items() for name, values in batch.arrays().items()}

    def _unit(self, chosen: Chosen, places: Partial, models: _Rows, batches: dict[int, _Batch]) -> None:
        sources, indices, names = self.chosen.paths(chosen)
        result, prefix = chosen.reader.result(), self.chosen.run_of(chosen).prefix
        rank = _ranks(result.lattices["frame"])
        for number, lattice in zip(chosen.numbers.tolist(), chosen.rows.tolist(), strict=True):
            frame = int(result.lattices["frame"][lattice])
            source, index = int(sources[frame]), int(indices[frame])
            experiment = Experiment(
                self.beam or models.beam(number),
                self.detector or models.detector(number),
                crystal=crystal_of(result, lattice),
                identifier=f"{prefix}{source}-{index}-{rank[lattice]}",
                image=(names[source], index),
            )
            place = {name: values[number].item() for name, values in places.items()}
            batch = batches.setdefault(place["batch"], _Batch(self.reflections))
            batch.add(lattice_reflections(experiment, result, lattice), place)


@dataclass(frozen=True)
class _Rows:
    """Models of the lattices of a leaf, whose first has the number ``first``."""

    arrays: Partial
    detectors: tuple[Detector, ...]
    first: int

    def beam(self, number: int) -> Beam:
        return beam_of(self.arrays["beam"][number - self.first])

    def detector(self, number: int) -> Detector:
        row = number - self.first
        move = self.arrays["move"][row]
        return self.detectors[int(self.arrays["detector"][row])].moved(as_vector(move[:3]), (float(move[3]), float(move[4])))


def _ranks(frame: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the number of each lattice among those of its frame, from 0."""
    rank = np.zeros(len(frame), dtype=np.int64)
    seen: dict[int, int] = {}
    for row, value in enumerate(frame.tolist()):
        rank[row] = seen.get(value, 0)
        seen[value] = int(rank[row]) + 1
    return rank


class _Batch:
    """Pieces of one pair of files."""

    def __init__(self, reflections: str) -> None:
        self._columns: Callable[[int, LatticeReflections], dict[str, NDArray[Any]]]
        self._columns = indexed_columns if reflections == "indexed" else integrated_columns
        self._kinds = KINDS[reflections]
        self._parts: dict[str, list[bytes]] = {name: [] for name in self._kinds}
        self._texts: dict[str, list[str]] = {name: [] for name in TEXTS}
        self._identifiers: list[str] = []
        self._rows = 0

    def add(self, item: LatticeReflections, place: dict[str, Any]) -> None:
        experiment, number = item.experiment, place["id"]
        columns = self._columns(number, item)
        n = len(columns["id"])
        columns["imageset_id"] = np.full(n, place["imageset"], np.int32)
        for name, kind in self._kinds.items():
            self._parts[name].append(np.ascontiguousarray(columns[name], dtype=TYPES[kind][0]).tobytes())
        self._rows += n
        self._identifiers.append(experiment.identifier)
        models = {name: place[name] for name in ("beam", "detector", "imageset")}
        row = {"__id__": "Experiment", "identifier": experiment.identifier, **models, "crystal": number}
        assert experiment.crystal is not None
        assert experiment.image is not None
        self._texts["experiment"].append(item_text([row]))
        self._texts["crystal"].append(item_text([crystal_content(experiment.crystal)]))
        if place["own_imageset"]:
            self._texts["imageset"].append(item_text([imageset_content(experiment.image, None)]))
        if place["own_beam"]:
            self._texts["beam"].append(item_text([beam_content(experiment.beam)]))
        if place["own_detector"]:
            self._texts["detector"].append(item_text([detector_content(experiment.detector)]))

    def arrays(self) -> Partial:
        arrays: Partial = {name: _bytes(b"".join(parts)) for name, parts in self._parts.items()}
        arrays |= {f"text.{name}": _bytes(",\n".join(items).encode()) for name, items in self._texts.items()}
        arrays["identifiers"] = _bytes("\n".join(self._identifiers).encode())
        arrays["n_rows"] = np.array([self._rows], np.int64)
        return arrays


def _bytes(content: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(content, np.uint8)


def _hash(*parts: object) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def _key(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
