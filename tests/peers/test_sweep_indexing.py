"""Sweeps indexed and refined from the spots of other programs, against what these found."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from xfelproc.algorithms.indexing.sweep import IndexSweep, SweepLattice, cell_of_a, lattice_words
from xfelproc.algorithms.refinement.sweep import RefinedSweeps, RefineSweep, SweepObservations
from xfelproc.geometry.cells import lattice_rotations, misorientation
from xfelproc.geometry.rotation import Sweep, angle_to_frame, frame_to_angle, points_at_zero
from xfelproc.io.exchange.dials_expt import read_expt
from xfelproc.io.exchange.dials_refl import read_refl
from xfelproc.io.exchange.xds_read import read_spot_xds, read_xparm
from xfelproc.models.experiment import Experiment, Goniometer, Scan


@dataclass
class Spots:
    """Spots of a sweep: panel, fast, slow (px), frame coordinate, intensity."""

    experiment: Experiment
    panel: np.ndarray
    place: np.ndarray
    intensity: np.ndarray

    @property
    def models(self) -> tuple[Goniometer, Scan]:
        assert self.experiment.goniometer is not None
        assert self.experiment.scan is not None
        return self.experiment.goniometer, self.experiment.scan

    def points(self) -> np.ndarray:
        goniometer, scan = self.models
        fast, slow, z = self.place.T
        angle = frame_to_angle(scan, z)
        return points_at_zero(self.experiment.beam, self.experiment.detector, goniometer, self.panel, fast, slow, angle)


def dials_spots(experiment: Experiment, columns: dict[str, np.ndarray]) -> Spots:
    assert experiment.scan is not None
    place = np.array(columns["xyzobs.px.value"]) - [0, 0, experiment.scan.image_range[0] - 1]
    return Spots(experiment, np.array(columns["panel"]).astype(np.int32), place, np.array(columns["intensity.sum.value"]))


def quartz(folder: Path) -> list[Spots]:
    return [dials_spots(read_expt(folder / "imported.expt.xz")[0], dict(read_refl(folder / "strong.refl.xz").columns))]


def weak(folder: Path) -> list[Spots]:
    experiment = read_expt(folder / "imported.expt")[0]
    with h5py.File(folder / "indexed.h5") as file:
        mm, intensity = file["xyzobs.mm.value"][:], file["intensity.sum.value"][:]
    assert experiment.scan is not None
    place = np.column_stack(
        [mm[:, :2] / experiment.detector.panels[0].pixel_size, angle_to_frame(experiment.scan, np.degrees(mm[:, 2]))]
    )
    return [Spots(experiment, np.zeros(len(mm), np.int32), place, intensity)]


def several(folder: Path) -> list[Spots]:
    found = []
    for number in (1, 2, 3, 4):
        (models,) = (path for path in folder.iterdir() if path.name.startswith(f"sweep{number}") and "expt" in path.name)
        with h5py.File(folder / f"sweep{number}-strong.h5") as file:
            columns = {name: file[name][:] for name in ("panel", "xyzobs.px.value", "intensity.sum.value")}
        found.append(dials_spots(read_expt(models)[0], columns))
    return found


def lta(folder: Path) -> list[Spots]:
    spots, _ = read_spot_xds(folder / "SPOT.XDS")
    place = np.column_stack([spots["fast"], spots["slow"], spots["z"]])
    return [Spots(read_xparm(folder / "XPARM.XDS"), spots["panel"], place, spots["intensity"].astype(float))]


def indexed(spots: list[Spots], group: str | None) -> tuple[SweepLattice, np.ndarray]:
    points = np.concatenate([one.points() for one in spots])
    return IndexSweep().index(points, np.concatenate([one.intensity for one in spots]), group), points


def refined(spots: list[Spots], lattice: SweepLattice, settings: RefineSweep) -> tuple[RefinedSweeps, int]:
    """Index with the lattice, refine, index again with the refined models, refine; return also how many are indexed."""
    matrix, count, found = lattice.a_matrix, 0, None
    for _ in range(2):
        observations, sweeps = [], []
        count = 0
        for number, one in enumerate(spots):
            if found is not None:
                one.experiment = replace(one.experiment, detector=found.sweeps[number].detector)
            index = one.points() @ np.linalg.inv(matrix).T
            hkl = np.rint(index).astype(np.int32)
            good = (np.abs(index - hkl).max(axis=1) < 0.3) & hkl.any(axis=1)
            count += int(good.sum())
            place = one.place[good]
            observations.append(SweepObservations(hkl[good], one.panel[good], *place.T, np.ones((len(place), 3))))
            goniometer, scan = one.models
            sweeps.append(Sweep(one.experiment.beam, one.experiment.detector, goniometer, scan, matrix[None]))
        found = settings.refine(observations, sweeps, lattice.space_group)
        matrix = found.sweeps[0].matrices[0]
    assert found is not None
    return found, count


def test_quartz(shared_data: Path) -> None:
    """Electron diffraction: the distance is not refined, as it cannot be told from the cell."""
    folder = shared_data / "dials_quartz"
    spots = quartz(folder)
    lattice, _ = indexed(spots, "P 31 2 1")
    assert lattice.explained.sum() >= 445
    found, count = refined(spots, lattice, RefineSweep(detector="none"))
    golden = read_expt(folder / "refined.expt.xz")[0].crystal
    assert golden is not None
    assert count >= 445
    np.testing.assert_allclose(cell_of_a(found.sweeps[0].matrices[0]), golden.cell, rtol=0.015)


def test_weak(shared_data: Path) -> None:
    folder = shared_data / "rotation_i04_weak"
    spots = weak(folder)
    lattice, _ = indexed(spots, "P 4")
    golden = read_expt(folder / "indexed.expt")[0].crystal
    assert golden is not None
    found, count = refined(spots, lattice, RefineSweep())
    assert count >= 0.99 * 13805
    np.testing.assert_allclose(cell_of_a(found.sweeps[0].matrices[0]), golden.cell, rtol=0.003)
    assert max(found.rmsd) < 0.25


def test_four_sweeps_jointly(shared_data: Path) -> None:
    lattice, _ = indexed(several(shared_data / "rotation_multi_sweep"), "I 4")
    found, count = refined(several(shared_data / "rotation_multi_sweep"), lattice, RefineSweep())
    assert count > 1250
    np.testing.assert_allclose(cell_of_a(found.sweeps[0].matrices[0]), (7.310, 7.310, 6.820, 90, 90, 90), rtol=0.003)


def test_lta(shared_data: Path) -> None:
    """Cell and orientation of XPARM.XDS within 0.5 % and 0.2 degrees, from the spots alone."""
    spots = lta(shared_data / "xds_lta")
    lattice, _ = indexed(spots, "P m -3 m")
    golden = spots[0].experiment.crystal
    assert golden is not None
    found, count = refined(spots, lattice, RefineSweep(detector="none"))
    assert count > 0.95 * len(spots[0].intensity)
    matrix = found.sweeps[0].matrices[0]
    np.testing.assert_allclose(cell_of_a(matrix), golden.cell, rtol=0.005)
    assert misorientation(matrix, golden.a_matrix, lattice_rotations(golden.cell)) < 0.2
    assert lattice.fits[0].penalty == pytest.approx(0.0)
    assert len(lattice_words(lattice)) > 20
