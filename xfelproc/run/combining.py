"""Combined experiments: the lattices of one run or of several, filtered, with shared models, as DIALS files or one Zarr group.

Workers go over the shards three times (see `stages.combine`); between, this process knows of each lattice some hundred bytes. The
pieces of the files that workers made are then copied together: neither reflections nor models of all lattices are in memory.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import ConfigError
from xfelproc.io.atomic import make_folder, write_pieces
from xfelproc.io.exchange.dials_pieces import expt_pieces, refl_pieces
from xfelproc.io.inflight import clear_inflight
from xfelproc.io.manifest import Manifest
from xfelproc.io.nodes import Partial, read_node, write_node
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.models.experiment import Detector
from xfelproc.run.combining_models import SharedModels
from xfelproc.run.combining_zarr import write_zarr
from xfelproc.run.config import Execution
from xfelproc.run.directory import RunDirectory
from xfelproc.run.folding import Gathering
from xfelproc.run.journal import Journal
from xfelproc.run.lineage import digest, versions
from xfelproc.run.lock import run_lock
from xfelproc.run.recipes import make_driver
from xfelproc.run.signals import StopFlag
from xfelproc.stages.combine import KINDS, TEXTS, ChosenLattices, CombinedRun, Models, Parts
from xfelproc.stages.combine_rows import Survey
from xfelproc.stages.combine_select import Selection, select
from xfelproc.stages.combine_settings import Combine
from xfelproc.stages.fold import Shards, cut_leaves
from xfelproc.stages.unit_sources import Opener

STAGE = "combine"
ROWS_A_PART = 1 << 18
"""Reflections of a part, about: some 70 MB."""
LATTICES_A_PART = (10_000, 1000)
"""Most lattices of a part, about: with a shared detector, and with a detector of many panels each."""
MOST_PARTS = 900


@dataclass(frozen=True)
class Combined:
    """What was written: files, lattices offered and kept, and how many each filter left out."""

    files: tuple[Path, ...]
    n_offered: int
    n_lattices: int
    n_reflections: int
    n_beams: int
    n_detectors: int
    left_out: Mapping[str, int]
    cell: tuple[float, ...] | None

    def lines(self) -> list[str]:
        """Return it in words."""
        lost = "".join(f", {count} left out: {name}" for name, count in self.left_out.items())
        models = f"; {self.n_beams} beams, {self.n_detectors} detectors" if self.n_beams else ""
        found = f"{self.n_lattices} of {self.n_offered} lattices with {self.n_reflections} reflections{models}{lost}"
        shown = [str(path) for path in self.files]
        return [found, *(f"wrote {name}" for name in shown)]


@dataclass(frozen=True)
class CombineInput:
    """A run whose lattices are combined: its folder, manifest, the stage of its last shards, and what its files are opened with.

    ``place`` gives a frame's detector the refined geometry; None: it was not refined. ``shards`` is how its shards are to be read,
    where it is combined alone; None: as they are.
    """

    folder: Path
    manifest: Manifest
    stage: str
    settings: SourceSettings
    place: Callable[[Detector], Detector] | None = None
    shards: Shards | None = None


@dataclass(frozen=True)
class _Choice:
    """The lattices that are chosen, of how many, and a row of facts on each."""

    shards: Shards
    n_offered: int
    rows: Partial
    selection: Selection


def combine_runs(gathering: Gathering, runs: Sequence[CombineInput], settings: Combine, output: Path, opener: Opener) -> Combined:
    """Combine the lattices of runs into ``output``: ``X.expt`` (and ``X.refl`` beside it) or ``X.zarr``.

    Parameters
    ----------
    gathering
        Driver, and the folder in whose ``gather/combine`` the work is done; it is removed at the end.
    runs
        Finished runs; lattices are numbered in their order.
    settings
        Filters and models.
    output
        File or folder to write.
    opener
        Opens sources of frames, for their models.

    Raises
    ------
    ConfigError
        If no lattice is left, or models that are to be shared differ: which and by how much.
    DataError
        If a shard or a source is damaged.
    OutputError
        If the output cannot be written; what is done is kept for the next attempt.
    """
    own = runs[0].shards if len(runs) == 1 else None
    shards = own or Shards(tuple(run.stage for run in runs), tuple((run.folder.absolute(), run.manifest.n_units) for run in runs))
    sizes = np.concatenate([np.diff(run.manifest.offsets) for run in runs])
    chosen = _choose(gathering, shards, settings, cut_leaves(sizes, gathering.execution.fold_size))
    done = (
        _zarr(runs, chosen, output) if output.suffix == ".zarr" else _Dials(gathering, runs, settings, chosen, opener).write(output)
    )
    shutil.rmtree(gathering.directory.gather / STAGE, ignore_errors=True)
    return done


@contextmanager
def workplace(output: Path, execution: Execution) -> Iterator[Gathering]:
    """Give a driver, and the folder ``OUTPUT.parts`` for what workers make; it is removed when all went well.

    Raises
    ------
    Interrupted
        After SIGINT or SIGTERM: the same command goes on.
    """
    stop, directory = StopFlag(), RunDirectory(output.with_name(f"{output.name}.parts"))
    with ExitStack() as stack:
        stack.enter_context(stop.installed())
        for folder in (output.absolute().parent, directory.path, directory.gather):
            make_folder(folder)
        stack.enter_context(run_lock(directory.path, on_lost=stop.set))
        clear_inflight(directory.path)  # of a command that was killed: they would be taken for workers that are late
        journal = Journal(directory.path)
        stack.callback(journal.close)
        driver = make_driver(execution, directory.path / "logs")
        stack.callback(driver.close)
        stop.patient = True
        yield Gathering(directory, execution, driver, journal, stop, lambda word, details: journal.write(word, **details))
    shutil.rmtree(directory.path, ignore_errors=True)


def _choose(gathering: Gathering, shards: Shards, settings: Combine, leaves: tuple[int, ...]) -> _Choice:
    cutoff = settings.min_i_over_sigma if settings.n_subset is not None and settings.subset == "significance" else None
    paths = gathering.update(Survey(settings.reflections, cutoff), f"{STAGE}/survey", 0, shards, leaves)
    parts = [read_node(path)[1] for path in paths]
    facts = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    selection = select(facts, settings)
    if not len(selection.kept):
        why = ", ".join(f"{count}: {name}" for name, count in selection.left_out.items()) or "no frame was indexed"
        raise ConfigError(f"no lattice is left to combine ({why})")
    return _Choice(shards, len(facts["block"]), {name: values[selection.kept] for name, values in facts.items()}, selection)


@dataclass(frozen=True)
class _Dials:
    """Writes DIALS files."""

    gathering: Gathering
    runs: Sequence[CombineInput]
    settings: Combine
    chosen: _Choice
    opener: Opener

    def write(self, output: Path) -> Combined:
        """Write them; return what they hold."""
        folder = self.gathering.directory.gather.absolute() / STAGE
        block, row = self.chosen.rows["block"], self.chosen.rows["row"]
        lineage = digest({"block": _content(block), "row": _content(row)})
        write_node(folder / "selection.h5", lineage, {"block": block, "row": row})
        prefixes = [f"{number}-" if len(self.runs) > 1 else "" for number in range(len(self.runs))]
        runs = tuple(
            CombinedRun(run.folder.absolute(), run.settings, prefix, run.place)
            for run, prefix in zip(self.runs, prefixes, strict=True)
        )
        lattices = ChosenLattices(runs, self.chosen.shards, folder / "selection.h5", lineage, self.opener)
        offsets = self._offsets()
        models = self.gathering.update(Models(lattices), f"{STAGE}/models", 0, self.chosen.shards, offsets)
        beam, detector = SharedModels(self.settings, lattices, models, offsets, block).find()
        places = self._places(models, beam is not None, detector is not None)
        stamp = digest({name: _content(values) for name, values in places.items()})
        write_node(folder / "places.h5", stamp, places)
        parts = Parts(lattices, models, offsets, folder / "places.h5", stamp, self.settings.reflections, beam, detector)
        paths = self.gathering.update(parts, f"{STAGE}/parts", 0, self.chosen.shards, offsets)
        files, n_reflections = self._files(output, paths, np.searchsorted(block, offsets), places["batch"])
        return Combined(
            files=files,
            n_offered=self.chosen.n_offered,
            n_lattices=len(block),
            n_reflections=n_reflections,
            n_beams=int(places["own_beam"].sum()),
            n_detectors=int(places["own_detector"].sum()),
            left_out=self.chosen.selection.left_out,
            cell=self.chosen.selection.cell,
        )

    def _offsets(self) -> tuple[int, ...]:
        rows = self.chosen.rows["n_rows"][:, 1 if self.settings.reflections == "indexed" else 2]
        weight = rows + ROWS_A_PART // LATTICES_A_PART[self.settings.detector == "each"]
        sizes = np.bincount(self.chosen.rows["block"], weight, minlength=len(self.chosen.shards)).astype(np.int64)
        return cut_leaves(sizes, max(ROWS_A_PART, -(-int(sizes.sum()) // MOST_PARTS)))

    def _places(self, models: Sequence[Path], one_beam: bool, one_detector: bool) -> Partial:
        """Return of each lattice its batch, its number in it, and the numbers of its models there."""
        n = len(self.chosen.rows["block"])
        number = np.arange(n)
        size = self.settings.batch_size or n
        frame = self.chosen.rows["block"].astype(np.int64) << 32 | self.chosen.rows["frame"]
        keys = {"imageset": frame}
        for name, one in (("beam", one_beam), ("detector", one_detector)):
            key = f"{name}_key"
            keys[name] = np.zeros(n, np.int64) if one else np.concatenate([read_node(p, (key,))[1][key] for p in models])
        places: Partial = {"batch": number // size, "id": number % size}
        for name, values in keys.items():
            numbered = [first_numbers(values[begin : begin + size]) for begin in range(0, n, size)]
            places[name] = np.concatenate([numbers for numbers, _ in numbered])
            places[f"own_{name}"] = np.concatenate([own for _, own in numbered])
        return places

    def _files(
        self, output: Path, paths: Sequence[Path], first: NDArray[np.int64], batch: NDArray[np.int64]
    ) -> tuple[tuple[Path, ...], int]:
        """Write the files; ``first`` is the number of the first lattice of each part (and the number of lattices)."""
        files: list[Path] = []
        total, n_batches = 0, int(batch[-1]) + 1
        for number in range(n_batches):
            begin, end = np.searchsorted(batch, [number, number + 1])
            mine = [path for path, a, b in zip(paths, first[:-1], first[1:], strict=True) if max(a, begin) < min(b, end)]
            name = output if n_batches == 1 else output.with_stem(f"{output.stem}_{number:04d}")
            total += _write_pair(name, number, mine, int(end - begin), KINDS[self.settings.reflections])
            files += [name, name.with_suffix(".refl")]
        return tuple(files), total


def _write_pair(output: Path, batch: int, parts: Sequence[Path], n: int, kinds: Mapping[str, str]) -> int:
    """Copy the pieces of one pair of files together; return the number of reflections."""

    def pieces(name: str) -> Iterator[bytes]:
        for path in parts:
            yield read_node(path, (f"{batch}:{name}",))[1][f"{batch}:{name}"].tobytes()

    def texts(name: str) -> Iterator[str]:
        for piece in pieces(f"text.{name}") if name in TEXTS else ():
            yield piece.decode()

    n_rows = sum(int(np.frombuffer(piece, np.int64)[0]) for piece in pieces("n_rows"))
    identifiers = (name for piece in pieces("identifiers") for name in piece.decode().split("\n"))
    write_pieces(output.with_suffix(".refl"), refl_pieces(identifiers, n, kinds, n_rows, pieces))
    write_pieces(output, expt_pieces(texts))
    return n_rows


def first_numbers(keys: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return numbers of distinct keys, in the order in which they first come, and whether a row is the first of its number."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    own = np.zeros(len(keys), dtype=bool)
    own[first] = True
    return rank[inverse], own


def _content(values: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()


def _zarr(runs: Sequence[CombineInput], chosen: _Choice, output: Path) -> Combined:
    attributes = {
        "title": "combined lattices of xfelproc runs",
        "versions": versions(),
        "runs": [run.folder.absolute().name for run in runs],
        "left_out": dict(chosen.selection.left_out),
        "cell": None if chosen.selection.cell is None else list(chosen.selection.cell),
    }
    done = write_zarr([run.manifest for run in runs], chosen.shards, chosen.rows, output, attributes)
    return Combined(
        files=(output,),
        n_offered=chosen.n_offered,
        n_lattices=len(chosen.rows["block"]),
        n_reflections=done.rows["reflections"],
        n_beams=0,
        n_detectors=0,
        left_out=chosen.selection.left_out,
        cell=chosen.selection.cell,
    )
