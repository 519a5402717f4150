"""Merging: what its tasks share, where their files are, and how a shard is read for it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.lattice_block import LatticeBlock
from xfelproc.algorithms.merging.lattice_models import LatticeModels
from xfelproc.algorithms.merging.observations import Observations, chosen_rows, corrected, half_set
from xfelproc.algorithms.merging.panels import EVERYWHERE, PanelLimits
from xfelproc.algorithms.merging.reduction import find_space_group
from xfelproc.algorithms.merging.settings import Merge
from xfelproc.errors import DamagedPartError, DataError
from xfelproc.io.columns import ColumnFile
from xfelproc.io.manifest_reader import ManifestReader
from xfelproc.io.nodes import Partial, read_node
from xfelproc.models.tables import FrameTable, ReflectionTable
from xfelproc.stages.fold import UnitReader
from xfelproc.stages.merge_groups import FrameGroups, GroupFile

UNMERGED = {"polarization": "f4", "panel": "i2", "fast": "f4", "slow": "f4", "flags": "u2"}
"""Columns that only the unmerged file has, and their types."""
LATTICE_ARRAYS = ("half", "cell", "A", "wavelength", "lattice_group")


@dataclass(frozen=True)
class MergeJob:
    """What all tasks of a merging share: parameters, space group, the hash of all that is merged, the folder of its files, and the
    number of groups that are merged apart as well.
    """

    settings: Merge
    space_group: str
    lineage: str
    folder: Path
    panels: PanelLimits = EVERYWHERE
    """Parts of the detector that are left out."""
    n_groups: int = 0
    bandwidth: float = 0.0
    """Of the beam, relative, FWHM."""

    @property
    def group(self) -> gemmi.SpaceGroup:
        """The space group."""
        return find_space_group(self.space_group)

    def hash(self, *words: object) -> str:
        """Return the lineage of a part of the merging."""
        return hashlib.sha256(" ".join([self.lineage, *map(str, words)]).encode()).hexdigest()

    @property
    def groups(self) -> GroupFile:
        """Where the group of each frame is said, if there are groups."""
        return GroupFile(self.folder / "groups.bin", self.hash("groups"))

    def leaf(self, first: int) -> Path:
        """Return where the lattices of some shards are, of which ``first`` is the first."""
        return self._of("observations", first)

    def places(self, first: int) -> Path:
        """Return where it is said which unique reflection each of their observations belongs to."""
        return self._of("places", first)

    def models(self, number: int, first: int) -> Path:
        """Return where the models are that a pass gave these lattices."""
        return self._of(f"models/{number}", first)

    def influences(self, first: int) -> Path:
        """Return where the ΔCC1/2 of these lattices are."""
        return self._of("influences", first)

    def rows(self, first: int) -> Path:
        """Return where the rows of these lattices for the unmerged MTZ are."""
        return self._of("rows", first)

    def lattices(self, first: int) -> Path:
        """Return where it is said what became of these lattices."""
        return self._of("lattices", first)

    def _of(self, what: str, first: int) -> Path:
        return self.folder / what / f"{first:08d}.bin"

    def read_columns(self, path: Path, lineage: str, names: tuple[str, ...] | None = None) -> Partial:
        """Return arrays of one of the plain files. Raises DamagedPartError as `read` does."""
        file = self._open(path, lineage)
        return self._read(file, file.names if names is None else names)

    def _open(self, path: Path, lineage: str) -> ColumnFile:
        try:
            return ColumnFile(path, lineage)
        except DataError as error:
            raise self.damaged(path) from error

    def _read(self, file: ColumnFile, names: tuple[str, ...]) -> Partial:
        try:
            return {name: file.read(name) for name in names}
        except DataError as error:
            raise self.damaged(file.path) from error

    def read_block(self, first: int, whole: bool = False) -> LatticeBlock:
        """Return a leaf as a block; but for the ``whole`` of it the columns that only the unmerged file has are 0.

        Raises DamagedPartError as `read` does.
        """
        file = self._open(self.leaf(first), self.hash("leaf", first))
        names = tuple(name for name in file.names if whole or name not in UNMERGED)
        arrays = self._read(file, names) | self.read_columns(self.places(first), self.hash("places", first))
        n = len(arrays["group"])
        arrays |= {name: np.broadcast_to(np.zeros(1, kind), n) for name, kind in UNMERGED.items() if not whole}
        arrays["bandwidth"] = np.full(len(arrays["starts"]) - 1, self.bandwidth)
        return LatticeBlock.from_arrays(arrays)

    def read_models(self, number: int, first: int) -> LatticeModels:
        """Return the models of a block's lattices after a pass. Raises DamagedPartError as `read` does."""
        return LatticeModels.from_arrays(self.read_columns(self.models(number, first), self.hash("models", number, first)))

    def read_influences(self, number: int, first: int) -> NDArray[np.float64]:
        """Return the ΔCC1/2 of a block's lattices after some passes; NaN where none were determined. Raises as `read` does."""
        path = self.influences(first)
        return self.read_columns(path, self.hash("influences", number, first), ("values",))["values"]

    def read(self, path: Path, lineage: str, names: tuple[str, ...] | None = None) -> Partial:
        """Return arrays of one of these files.

        Raises
        ------
        DamagedPartError
            If it is missing, damaged, or of another merging.
        """
        try:
            found, arrays = read_node(path, names)
        except DataError as error:
            raise self.damaged(path) from error
        if found != lineage:
            raise DamagedPartError(f"is of another merging: remove {self.folder} and run the same command again", path)
        return arrays

    def damaged(self, path: Path) -> DamagedPartError:
        """Return the error of a file that is missing or damaged."""
        # not the file alone: the node that tells that it was made would still be there
        return DamagedPartError(f"is missing or damaged: remove {self.folder} and run the same command again", path)


@dataclass(frozen=True)
class Lattices:
    """The lattices of some shards with their usable reflections, numbered from 0."""

    reflections: ReflectionTable
    half: NDArray[np.uint8]
    cell: NDArray[np.float64]
    A: NDArray[np.float64]
    wavelength: NDArray[np.float64]
    lost: NDArray[np.int64]
    """Observations left out, see `chosen_rows`."""
    lattice_group: NDArray[np.int16]

    @classmethod
    def of(cls, block: UnitReader, job: MergeJob, groups: FrameGroups | None = None) -> Lattices:
        """Read a shard; None: all lattices are of one group."""
        result = block.result()
        frames, row = result.frames, result.lattices["frame"]
        rows, lost = chosen_rows(result.reflections, job.settings, job.panels)
        return cls(
            result.reflections.select(rows),
            _half_sets(block.run, block.unit, frames, row),
            result.lattices["cell"],
            result.lattices["A"],
            frames["wavelength"][row],
            lost,
            np.zeros(len(row), dtype=np.int16) if groups is None else groups.of(block.block, row, len(frames)),
        )

    @classmethod
    def joined(cls, parts: list[Lattices]) -> Lattices:
        """Return consecutive shards as one."""
        offsets = np.cumsum([0] + [len(p) for p in parts])
        moved = [
            p.reflections.replace(lattice=p.reflections["lattice"] + offset) for p, offset in zip(parts, offsets[:-1], strict=True)
        ]
        arrays = {
            f.name: np.concatenate([getattr(p, f.name) for p in parts])
            for f in fields(cls)
            if f.name not in ("reflections", "lost")
        }
        return cls(ReflectionTable.concatenate(moved), **arrays, lost=np.sum([p.lost for p in parts], axis=0))

    def __len__(self) -> int:
        return len(self.half)

    def observations(self) -> Observations:
        """Return the reflections as observations."""
        return corrected(self.reflections, self.half)

    def arrays(self) -> Partial:
        """Return what is known of each lattice, (n, ...)."""
        return {name: getattr(self, name) for name in LATTICE_ARRAYS}


def _half_sets(run: Path, unit: int, frames: FrameTable, row: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Return the half-sets of the lattices on these rows of a unit's frames."""
    reader = ManifestReader(run / "manifest.h5")
    try:
        given = reader.unit_input(unit)
    finally:
        reader.close()
    identity = zip(frames["source"][row].tolist(), frames["index"][row].tolist(), strict=True)
    names = {number: given.sources.name(given.row(number)) for number in given.numbers.tolist()}
    return np.array([half_set(names[source], index) for source, index in identity], dtype=np.uint8)
