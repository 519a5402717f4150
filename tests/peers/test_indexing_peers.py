"""Indexing of other people's spots and of an independent simulation."""

from __future__ import annotations

import lzma
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  (registers the codec)
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.run.spot_lists import run_spots
from xfelproc.algorithms.calibration import Calibrate
from xfelproc.algorithms.indexing import Index
from xfelproc.algorithms.spotfinding import FindSpots
from xfelproc.algorithms.symmetry.consensus import find_consensus
from xfelproc.geometry.cells import lattice_rotations, misorientation, real_space_basis
from xfelproc.geometry.lattice_symmetry import cell_deviation
from xfelproc.geometry.reduction import reduced_cell
from xfelproc.io.exchange.dials_expt import read_expt
from xfelproc.io.exchange.geom import parse_geom
from xfelproc.io.exchange.stream_reader import panel_positions, read_stream, read_stream_header
from xfelproc.io.sources import SourceSettings, open_source
from xfelproc.models.conventions import FLIP_XZ
from xfelproc.models.frames import CellTarget
from xfelproc.models.tables import SpotTable

pytestmark = pytest.mark.peer

LYSOZYME = CellTarget((79.1, 79.1, 38.0, 90.0, 90.0, 90.0), "P 43 21 2")
HT2B = CellTarget((61.4, 122.6, 168.0, 90.0, 90.0, 90.0), "C 2 2 21")


def folder_of(shared_data: Path, name: str) -> Path:
    folder = shared_data / name
    if not folder.is_dir():
        pytest.skip(f"test data not found at {folder}")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("target", [LYSOZYME, CellTarget()], ids=["known cell", "unknown cell"])
def test_simulated_stills(shared_data, target):
    """48 of 48 hits right against the orientation that the pixels show, no blank indexed."""
    folder = folder_of(shared_data, "stills_nanobragg")
    with h5py.File(folder / "truth.h5") as file:
        turn = Rotation.from_rotvec(file["mosaic_mean_rotation"][()]).as_matrix()
        truth = FLIP_XZ @ turn @ file["A_reciprocal"][()]
        hit = file["hit"][()].astype(bool)
    source = open_source(folder / "stills.h5", SourceSettings(geometry=folder / "stills.geom"))
    calibrate, find, index = Calibrate(), FindSpots(), Index()
    constants = None
    rotations = lattice_rotations(LYSOZYME.cell, 1.0)
    wrong = []
    for k in range(60):
        frame = source.read(k)
        if constants is None:
            constants = calibrate.constants(frame.detector, frame.mask)
        frame = calibrate.apply(frame, constants)
        found = index.index(find.find(frame), frame.detector, frame.beam, target).lattices
        assert bool(found) == hit[k]
        if found:
            basis = found[0].crystal.real_space
            unique = int(np.argmin(np.linalg.norm(basis, axis=1)))
            ordered = np.roll(basis, 2 - unique, axis=0)
            wrong.append(misorientation(np.linalg.inv(ordered), truth[k], rotations))
    assert len(wrong) == 48
    assert np.median(wrong) < 0.012
    assert np.max(wrong) < 0.06


def test_peaks_of_a_stream(shared_data):
    """LCLS shots of 5HT2B: at least as many crystals as the stream has, most of them the same."""
    path = folder_of(shared_data, "stream_5ht2b") / "test.stream.xz"
    geometry = parse_geom(read_stream_header(path).geometry)
    corners = {panel.name: (k, panel.min_fs, panel.min_ss) for k, panel in enumerate(geometry.panels)}
    rotations = lattice_rotations(HT2B.cell, 2.0)
    theirs, ours, same = 0, 0, 0
    for chunk in read_stream(path):
        values = {key[len("hdf5") :]: float(text) for key, text in chunk.values.items() if key.startswith("hdf5/")}
        panel, fast, slow = panel_positions(chunk.peaks, corners)
        spots = SpotTable(len(panel), panel=panel, fast=fast, slow=slow, intensity=np.abs(chunk.peaks.intensity))
        result = Index().index(spots, geometry.detector(values), geometry.beam(values), HT2B)
        theirs += len(chunk.crystals)
        for lattice in result.lattices:
            length, angle = cell_deviation(lattice.crystal.cell, HT2B.cell)
            assert length < 0.02
            assert angle < 1.5
            ours += 1
            apart = [misorientation(lattice.crystal.a_matrix, c.crystal.a_matrix, rotations) for c in chunk.crystals]
            same += any(a < 1.5 for a in apart)
    assert theirs == 32
    assert ours >= 40
    assert same >= 30


@pytest.mark.parametrize(
    "target", [CellTarget((78.85, 78.85, 38.06, 90, 90, 90), "P 43 21 2"), CellTarget()], ids=["known", "unknown"]
)
def test_synchrotron_stills_of_lysozyme(shared_data, target):
    """Three of four stills index; the distance in the file is 30 mm short of the one at which they do (289.3 mm)."""
    folder = folder_of(shared_data, "still_i24_lyso")
    experiments = read_expt(folder / "imported.expt")
    wanted = np.array(reduced_cell((38.06, 78.78, 78.91, 90, 90, 90)))
    found = 0
    with h5py.File(folder / "strong.h5") as file:
        columns = {
            name: file[name][()] for name in ("id", "panel", "xyzobs.px.value", "intensity.sum.value", "intensity.sum.variance")
        }
    for k, experiment in enumerate(experiments):
        rows = columns["id"] == k
        position, intensity = columns["xyzobs.px.value"][rows], columns["intensity.sum.value"][rows]
        snr = intensity / np.sqrt(columns["intensity.sum.variance"][rows])
        spots = SpotTable(
            None, panel=columns["panel"][rows], fast=position[:, 0], slow=position[:, 1], intensity=intensity, snr=snr
        )
        detector = experiment.detector.shifted((0.0, 0.0, -30.0))
        lattices = Index().index(spots, detector, experiment.beam, target).lattices
        found += bool(lattices)
        for lattice in lattices:
            assert np.allclose(reduced_cell(lattice.crystal.cell)[:3], wanted[:3], rtol=0.01)
    assert found >= 3


def test_cells_of_single_shots_cluster(shared_data):
    """1341 cells of single shots of lysozyme: one cluster of nearly all, tetragonal."""
    lines = folder_of(shared_data, "unit_cells") / "lysozyme1341.txt.xz"
    with lzma.open(lines, "rt") as file:
        cells = np.array([[float(word) for word in line.split()[:6]] for line in file if line.strip()])
    found = find_consensus(cells)
    assert found is not None
    assert found.best.bravais == "tP"
    assert found.best.count > 0.95 * len(cells)
    assert np.allclose(found.best.cell[:3], np.median(cells, axis=0)[:3], rtol=2e-3)
    assert np.linalg.det(real_space_basis(found.best.cell)) > 0


@pytest.mark.slow
def test_stills_whose_recorded_distance_is_wrong(shared_data, tmp_path):
    """The same four stills at the distance in their file, 10 % short: a run finds the distance by itself, and all index."""
    folder = folder_of(shared_data, "still_i24_lyso")
    models = read_expt(folder / "imported.expt")[0]
    with h5py.File(folder / "strong.h5") as file:
        names = ("id", "panel", "xyzobs.px.value", "intensity.sum.value", "intensity.sum.variance")
        columns = {name: file[name][()] for name in names}
    position, intensity = columns["xyzobs.px.value"], columns["intensity.sum.value"]
    snr = intensity / np.sqrt(columns["intensity.sum.variance"])
    spots = SpotTable(None, panel=columns["panel"], fast=position[:, 0], slow=position[:, 1], intensity=intensity, snr=snr)
    lists = [spots.select(columns["id"] == k) for k in range(4)]
    cell = (38.06, 78.78, 78.91, 90.0, 90.0, 90.0)
    found = run_spots(lists, models.detector, models.beam, CellTarget(cell, "P 2 2 2"), tmp_path)
    assert found.distance == pytest.approx(319.0, abs=1.0)
    assert found.n_indexed >= 3
    for unit in found.units:
        for lattice in unit.lattices["cell"]:
            length, angle = cell_deviation(lattice, cell)
            assert length < 0.02
            assert angle < 1.5
