"""Runs of made-up lattices on a detector of four panels in two groups, for tests of what is done with lattices after a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.geometry.cells import b_matrix, rotation_matrix
from xfelproc.io.atomic import make_folder
from xfelproc.io.manifest import Manifest, Sources, SourceTable, write_manifest
from xfelproc.io.names import FileNames
from xfelproc.io.shards import ShardHeader, shard_path, write_shard
from xfelproc.io.sources.base import FrameSource, SourceSummary
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.models.conventions import FrameStatus
from xfelproc.models.experiment import Beam, Detector, DetectorGroup, Experiment, Panel
from xfelproc.models.frames import Frame, UnitResult
from xfelproc.models.tables import FrameTable, IndexedTable, LatticeTable, ReflectionTable, SpotTable
from xfelproc.run.combining import CombineInput

CELL = (79.0, 79.0, 38.0, 90.0, 90.0, 90.0)
SIZE = 100


def detector(distance: float = 100.0) -> Detector:
    """Four panels about the beam, two to a group, with parallax."""
    panels = tuple(
        Panel(f"p{k}", (1, 0, 0), (0, -1, 0), (x, y, -distance), (0.1, 0.1), (SIZE, SIZE), thickness=0.5, material="Si", mu=3.0)
        for k, (x, y) in enumerate([(-10.5, 10.5), (0.5, 10.5), (-10.5, -0.5), (0.5, -0.5)])
    )
    frame: Any = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
    groups = tuple(DetectorGroup(f"q{k}", (2 * k, 2 * k + 1), *frame, (0.0, 5.5 - 11 * k, -distance)) for k in range(2))
    return Detector(panels, DetectorGroup("d", groups, *frame, (0.0, 0.0, -distance)))


class LatticeSource(FrameSource):
    """Frames without pixels: each its own wavelength; the file's text is the distance of the detector."""

    def __init__(self, path: str, settings: SourceSettings) -> None:
        self.path, self.n_frames = path, 1000
        self._detector = detector(float(Path(path).read_text()))

    def summary(self) -> SourceSummary:
        return SourceSummary(self.path, "fake", self.n_frames, "uint16", self.experiment(0))

    def experiment(self, index: int) -> Experiment:
        return Experiment(Beam(1.3 + 1e-4 * (index // 2)), self._detector)

    def static_mask(self) -> NDArray[np.uint8]:
        raise NotImplementedError

    def read(self, index: int, source: int = 0) -> Frame:
        raise NotImplementedError


def open_lattices(path: str, settings: SourceSettings) -> FrameSource:
    return LatticeSource(path, settings)


def unit_of(rng: np.random.Generator, first: int, n_frames: int) -> UnitResult:
    """Return frames with no, one or two lattices of some ten reflections, half of which have a spot."""
    lattice_frames = [row for row in range(n_frames) for _ in range((first + row) % 3)]
    n = len(lattice_frames)
    cells = np.array(CELL) + rng.normal(size=(n, 6)) * [0.2, 0.2, 0.1, 0, 0, 0]
    counts = rng.integers(8, 14, n)
    owner = np.repeat(np.arange(n), counts)
    m = len(owner)
    hkl = np.concatenate(
        [np.column_stack([np.arange(c), np.full(c, k), np.arange(c) % 3]) for k, c in enumerate(counts)] or [np.zeros((0, 3))]
    )
    place = rng.uniform(3, SIZE - 3, (m, 2))
    panel = rng.integers(0, 4, m)
    seen = np.flatnonzero(rng.random(m) < 0.5)
    off = rng.normal(0, 0.3, (len(seen), 2))
    spots = SpotTable(
        len(seen),
        frame=np.array(lattice_frames, dtype=np.int64)[owner[seen]] if n else [],
        panel=panel[seen],
        fast=place[seen, 0] + off[:, 0],
        slow=place[seen, 1] + off[:, 1],
        var_fast=rng.uniform(0.01, 0.1, len(seen)),
        var_slow=rng.uniform(0.01, 0.1, len(seen)),
        intensity=rng.uniform(50, 500, len(seen)),
        snr=rng.uniform(4, 20, len(seen)),
        n_pixels=np.full(len(seen), 5),
        d=rng.uniform(2, 10, len(seen)),
    )
    return UnitResult(
        frames=FrameTable(
            n_frames,
            index=np.arange(first, first + n_frames),
            status=[FrameStatus.INTEGRATED] * n_frames,
            wavelength=[1.3] * n_frames,
        ),
        spots=spots,
        lattices=LatticeTable(
            n,
            frame=lattice_frames,
            A=np.array([rotation_matrix(rng.normal(size=3)) @ b_matrix(cell) for cell in cells]).reshape(n, 3, 3),
            cell=cells,
            space_group=["P 43 21 2"] * n,
            rmsd_used=rng.gamma(4.0, 0.1, n),
            domain_size=[1000.0] * n,
            shift=rng.normal(0, 0.05, (n, 3)).round(3),
            tilt=rng.normal(0, 0.05, (n, 2)).round(3),
        ),
        indexed=IndexedTable(
            len(seen),
            lattice=owner[seen],
            spot=np.arange(len(seen)),
            hkl=hkl[seen],
            fast_calc=place[seen, 0],
            slow_calc=place[seen, 1],
            delta_psi=rng.normal(0, 0.1, len(seen)),
            used=rng.random(len(seen)) < 0.9,
        ),
        reflections=ReflectionTable(
            m,
            lattice=owner,
            hkl=hkl,
            panel=panel,
            fast=place[:, 0],
            slow=place[:, 1],
            intensity=rng.normal(50, 60, m),
            sigma=rng.uniform(5, 15, m),
            n_pixels=np.full(m, 29),
            d=rng.uniform(2, 10, m),
        ),
    )


def make_run(folder: Path, n_frames: int = 30, unit_size: int = 7, seed: int = 0, distance: float = 100.0) -> CombineInput:
    """Write a run's manifest and shards."""
    make_folder(folder)
    name = f"frames{seed}.txt"
    (folder / name).write_text(str(distance))
    offsets = np.append(np.arange(0, n_frames, unit_size), n_frames)
    sources = Sources(FileNames.of([str(folder)], [0], [name]), SourceTable(1, n_frames=[n_frames], chunk_frames=[1]))
    manifest = Manifest(sources, np.zeros(n_frames, np.int32), np.arange(n_frames), offsets)
    write_manifest(folder / "manifest.h5", manifest)
    rng = np.random.default_rng(seed)
    for unit, (first, last) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        result = unit_of(rng, first, last - first)
        counts = {status.name: 0 for status in FrameStatus} | {
            "LATTICES": len(result.lattices),
            "REFLECTIONS": len(result.reflections),
        }
        path = shard_path(folder, "process", unit)
        make_folder(path.parent)
        write_shard(path, ShardHeader(unit, f"{name} {unit} {n_frames} {seed}", "", counts, 0.1, path), result)
    return CombineInput(folder, manifest, "process", SourceSettings())
