"""Every geometry there is, read, written and read again: the same pixel positions to 1e-6 mm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import _data_folder
from xfelproc.geometry.detector import pixel_to_lab
from xfelproc.io.exchange import load_geometry
from xfelproc.io.exchange.dials_expt import read_expt, write_expt
from xfelproc.io.exchange.geom import read_geom
from xfelproc.io.exchange.geom_write import write_geom
from xfelproc.io.exchange.nexus import read_nexus_geometry, write_nexus_geometry
from xfelproc.models.experiment import Detector, Experiment

pytestmark = pytest.mark.peer

_ROOT = _data_folder()
GEOMS = sorted(p.relative_to(_ROOT) for p in [*_ROOT.glob("geoms/*.geom"), *_ROOT.glob("stills_nanobragg/*.geom")])
EXPTS = sorted(p.relative_to(_ROOT) for pattern in ("*/*.expt", "*/*.expt.xz", "*/*.json.xz") for p in _ROOT.glob(pattern))
MASTERS = [Path("nxmx/Therm_6_2.nxs"), Path("rotation_sim/sweep_master.h5")]
ALL = [*GEOMS, *EXPTS, *MASTERS]
TOLERANCE = 1e-6


def positions(detector: Detector) -> np.ndarray:
    """Return where corners, edges and centres of all panels are, parallax included."""
    found = []
    for number, panel in enumerate(detector.panels):
        fast, slow = np.meshgrid(np.linspace(0, panel.image_size[0], 3), np.linspace(0, panel.image_size[1], 3))
        found.append(pixel_to_lab(detector, number, fast.ravel(), slow.ravel()))
    return np.concatenate(found)


def surface(experiment: Experiment) -> Experiment:
    """Return the experiment without parallax, of which CrystFEL's files know nothing."""
    panels = tuple(replace(p, mu=0.0) for p in experiment.detector.panels)
    return replace(experiment, detector=Detector(panels, experiment.detector.hierarchy))


def known(path: Path) -> Experiment:
    """Return the geometry in a file, with a wavelength where it has none."""
    experiment = load_geometry(path)
    wavelength = experiment.beam.wavelength
    return replace(experiment, beam=replace(experiment.beam, wavelength=wavelength if np.isfinite(wavelength) else 1.3))


@pytest.mark.parametrize("name", GEOMS, ids=str)
def test_geom_to_geom(shared_data: Path, tmp_path: Path, name: Path) -> None:
    geom = read_geom(shared_data / name)
    write_geom(geom, tmp_path / "a.geom")
    again = read_geom(tmp_path / "a.geom")
    assert replace(again, path="", notes=()) == replace(geom, path="", notes=())
    assert np.abs(positions(again.detector()) - positions(geom.detector())).max() < TOLERANCE


def through_geom(experiment: Experiment, folder: Path) -> Experiment:
    write_geom(experiment, folder / "a.geom")
    return load_geometry(folder / "a.geom")


def through_expt(experiment: Experiment, folder: Path) -> Experiment:
    write_expt([experiment], folder / "a.expt")
    return read_expt(folder / "a.expt")[0]


def through_nexus(experiment: Experiment, folder: Path) -> Experiment:
    write_nexus_geometry(experiment, folder / "a.nxs")
    return read_nexus_geometry(folder / "a.nxs")


def through_expt_and_geom(experiment: Experiment, folder: Path) -> Experiment:
    return through_geom(through_expt(experiment, folder), folder)


@pytest.mark.parametrize("way", [through_geom, through_nexus, through_expt_and_geom])
@pytest.mark.parametrize("name", ALL, ids=str)
def test_surface_of_the_sensor(
    shared_data: Path, tmp_path: Path, name: Path, way: Callable[[Experiment, Path], Experiment]
) -> None:
    experiment = surface(known(shared_data / name))
    again = surface(way(experiment, tmp_path))
    assert len(again.detector) == len(experiment.detector)
    assert np.abs(positions(again.detector) - positions(experiment.detector)).max() < TOLERANCE
    assert again.beam.wavelength == pytest.approx(experiment.beam.wavelength, rel=1e-12)


@pytest.mark.parametrize("name", ALL, ids=str)
def test_dials_with_parallax(shared_data: Path, tmp_path: Path, name: Path) -> None:
    experiment = known(shared_data / name)
    again = through_expt(experiment, tmp_path)
    assert np.abs(positions(again.detector) - positions(experiment.detector)).max() < TOLERANCE
    assert again.beam == replace(experiment.beam, bandwidth=0.0)
    assert again.scan == experiment.scan


@pytest.mark.parametrize("name", MASTERS, ids=str)
def test_nexus_with_parallax(shared_data: Path, tmp_path: Path, name: Path) -> None:
    experiment = read_nexus_geometry(shared_data / name)
    again = through_nexus(experiment, tmp_path)
    assert np.abs(positions(again.detector) - positions(experiment.detector)).max() < TOLERANCE
    assert again.scan == experiment.scan
    assert again.goniometer is not None
    assert experiment.goniometer is not None
    assert np.allclose(again.goniometer.axes, experiment.goniometer.axes, atol=1e-12)


@pytest.mark.parametrize("name", EXPTS, ids=str)
def test_all_experiments_of_a_list(shared_data: Path, tmp_path: Path, name: Path) -> None:
    experiments = read_expt(shared_data / name)
    write_expt(experiments, tmp_path / "a.expt")
    again = read_expt(tmp_path / "a.expt")
    assert len(again) == len(experiments)
    assert len({id(e.detector) for e in again}) == len({id(e.detector) for e in experiments})
    for a, b in zip(again, experiments, strict=True):
        assert (a.crystal is None) == (b.crystal is None)
        if a.crystal is not None and b.crystal is not None:
            assert np.abs(a.crystal.a_matrix - b.crystal.a_matrix).max() < 1e-14
            assert a.crystal.space_group == b.crystal.space_group


def test_refined_cspad_hangs_together(shared_data: Path) -> None:
    detector = load_geometry(shared_data / "stills_thermolysin" / "cspad_refined_300shots.json.xz").detector
    assert len(detector) == 64
    tree = detector.hierarchy
    assert tree is not None
    assert [len(group.panels()) for group in tree.children if not isinstance(group, int)] == [16, 16, 16, 16]
    assert detector.d_matrices[:, 2, 2] == pytest.approx(np.full(64, -130.0), abs=1.5)
