"""Agreement with stills simulated by an independent program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gemmi
import h5py
import hdf5plugin  # noqa: F401  (registers the codec)
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from xfelproc.models.conventions import FLIP_XZ
from xfelproc.models.experiment import Detector, Panel
from xfelproc.simulation import SimulationSettings, Simulator
from xfelproc.simulation.crystal import Intensities, SimulatedCrystal
from xfelproc.simulation.layout import Layout
from xfelproc.simulation.settings import BeamSettings, CrystalSettings, DetectorSettings

pytestmark = [pytest.mark.peer, pytest.mark.slow]
CELL = (79.1, 79.1, 38.0, 90.0, 90.0, 90.0)
WAVELENGTH = 1.305097


@dataclass(frozen=True)
class Truth:
    folder: Path
    hits: NDArray[np.int64]
    matrices: NDArray[np.float64]
    """(60, 3, 3) effective orientations, columns a*, b*, c*, our laboratory frame."""
    intensities: Intensities

    def image(self, frame: int) -> NDArray[np.float64]:
        with h5py.File(self.folder / "stills.h5") as file:
            return np.asarray(file["entry/data/data"][frame], dtype=np.float64)


@pytest.fixture(scope="module")
def truth(shared_data: Path) -> Truth:
    folder = shared_data / "stills_nanobragg"
    if not folder.is_dir():
        pytest.skip(f"test data not found at {folder}")
    with h5py.File(folder / "truth.h5") as file:
        turn = Rotation.from_rotvec(file["mosaic_mean_rotation"][()]).as_matrix()
        matrices = FLIP_XZ @ turn @ file["A_reciprocal"][()]
        hkl, values = file["hkl"][()].astype(np.int32), file["intensity"][()].astype(np.float64)
        hits = np.flatnonzero(file["hit"][()])
    return Truth(folder, hits, matrices, Intensities(gemmi.SpaceGroup("P 43 21 2"), hkl, values))


@pytest.fixture(scope="module")
def simulator(truth: Truth) -> Simulator:
    settings = SimulationSettings(
        crystal=CrystalSettings(cell=CELL, d_min=1.8, samples=40),
        beam=BeamSettings(wavelength=WAVELENGTH, bandwidth=0.002, polarization=1.0),
        detector=DetectorSettings(size=(2000, 2000), pixel_size=0.075, distance=92.5, point_spread=0.5, dead=0.0),
    )
    panel = Panel("p0", (-1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (1003.2 * 0.075, -998.3 * 0.075, -92.5), (0.075, 0.075), (2000, 2000))
    return Simulator(settings, truth.intensities, Layout(Detector((panel,)), ((0, 0),), (2000, 2000)))


def _spots(mean: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return (slow, fast) of the 250 highest maxima away from the edge."""
    slow, fast = np.nonzero((mean == ndimage.maximum_filter(mean, 7)) & (mean > 0))
    order = np.argsort(-mean[slow, fast])[:250]
    found = np.column_stack([slow, fast])[order]
    kept: NDArray[np.int64] = found[np.all((found > 8) & (found < 1991), axis=1)]
    return kept


@pytest.mark.parametrize("number", [0, 3, 8])
def test_two_simulators_draw_the_same_frame(truth: Truth, simulator: Simulator, number: int) -> None:
    """Spot intensities correlate, and spots lie at the same place; block size and mosaicity are not in the peer's truth."""
    frame = int(truth.hits[number])
    image = truth.image(frame)
    best = 0.0
    for domain in (900.0, 1050.0, 1200.0, 1500.0):
        crystal = SimulatedCrystal(truth.matrices[frame], CELL, 1.0, domain, 0.025)
        mean = simulator.bragg([crystal], WAVELENGTH, np.random.default_rng(1))[0]
        ours, theirs, shifts = [], [], []
        for slow, fast in _spots(mean):
            background = np.median(image[slow - 8 : slow + 9, fast - 8 : fast + 9])
            seen = image[slow - 3 : slow + 4, fast - 3 : fast + 4] - background
            drawn = mean[slow - 3 : slow + 4, fast - 3 : fast + 4]
            ours.append(drawn.sum())
            theirs.append(seen.sum())
            if seen.sum() > 200:
                strong = np.maximum(seen - 2 * np.sqrt(background), 0.0)
                shifts.append(np.subtract(ndimage.center_of_mass(strong), ndimage.center_of_mass(drawn)))
        best = max(best, float(np.corrcoef(ours, theirs)[0, 1]))
        assert len(shifts) > 20
        assert np.all(np.abs(np.median(shifts, axis=0)) < 0.03)
        assert np.median(np.linalg.norm(shifts, axis=1)) < 0.12
    assert best > 0.99
