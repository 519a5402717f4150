"""Metrology on real CSPAD shots of lysozyme against dials.refine, on the rows that it kept and with its weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.algorithms.metrology.simulated import turned_onto_sphere
from xfelproc.algorithms.metrology import CrystalSpots, Metrology, MetrologyState
from xfelproc.algorithms.metrology.accumulate import add_batch, empty_partial
from xfelproc.algorithms.metrology.spots import pack
from xfelproc.geometry.hierarchy import groups_of
from xfelproc.io.exchange.dials_expt import read_expt
from xfelproc.models.experiment import Beam, Detector

PIXEL = 0.10992

pytestmark = pytest.mark.peer

DIALS = {
    0: (0.035401, 0.040558, 0.001785),
    1: (0.035388, 0.040550, 0.001782),
    2: (0.035290, 0.040508, 0.001781),
}
"""RMSDs of X, Y (mm) and ΔΨ (radians) after each level."""
AS_DIALS = Metrology(
    prediction="turn",
    outliers="none",
    sigma_psi=float(np.degrees(1e-2)),
    sigma_floor=0.0,
    restraint="none",
    min_crystal_spots=3,
    min_spots=3,
    cell_restraint=1.0,
    tolerance=0.003,
)


def load(folder: Path, name: str, used: bool) -> tuple[Detector, Beam, list[CrystalSpots], np.ndarray]:
    """Return detector, beam, the crystals and their positions in mm, end to end.

    As in dials.refine, positions are the millimetres of the file, corrected for parallax once and for all.
    """
    experiments = read_expt(folder / name)
    with h5py.File(folder / "indexed.h5") as file:
        data = {key: file[key][()] for key in file}
    crystals, millimetres = [], []
    for number, experiment in enumerate(experiments):
        rows = np.flatnonzero((data["id"] == number) & (data["used_by_dials"] | (not used)))
        px, variance = data["xyzobs.mm.value"][rows] / PIXEL, data["xyzobs.mm.variance"][rows] / PIXEL**2
        assert experiment.crystal is not None
        crystals.append(
            CrystalSpots(
                experiment.crystal.a_matrix,
                experiment.crystal.space_group,
                experiment.beam.wavelength,
                data["miller_index"][rows],
                data["panel"][rows].astype(np.int32),
                px[:, 0],
                px[:, 1],
                variance[:, 0],
                variance[:, 1],
                number,
            )
        )
        millimetres.append(data["xyzobs.mm.value"][rows, :2])
    panels = tuple(replace(panel, mu=0.0) for panel in experiments[0].detector.panels)
    detector = Detector(panels, experiments[0].detector.hierarchy)
    return detector, experiments[0].beam, crystals, np.concatenate(millimetres)


def rmsds(state: MetrologyState, settings: Metrology, crystals: list[CrystalSpots], observed: np.ndarray) -> np.ndarray:
    """Return RMSDs of X, Y (mm) and ΔΨ (radians), each crystal at its optimum, computed apart from the kernels."""
    detector = state.detector
    batch = pack(crystals)
    refined, _ = add_batch(settings, state, batch, empty_partial(len(groups_of(detector, state.finest)), len(detector)))
    a = np.repeat(refined, np.diff(batch.starts), axis=0)
    wavelength = np.repeat(batch.wavelengths, np.diff(batch.starts))
    s0 = -np.asarray(state.beam.direction) / wavelength[:, None]
    met, angle = turned_onto_sphere(np.einsum("nij,nj->ni", a, batch.hkl), s0)
    v = np.einsum("nij,nj->ni", detector.inverse_d_matrices[batch.panel], s0 + met)
    off = v[:, :2] / v[:, 2:] - observed
    return np.sqrt([np.mean(off[:, 0] ** 2), np.mean(off[:, 1] ** 2), np.mean(angle**2)])


@pytest.mark.parametrize("level", [0, 1, 2])
def test_no_worse_than_dials(shared_data: Path, level: int) -> None:
    detector, beam, crystals, observed = load(shared_data / "metrology_cspad", "experiments.expt.xz", used=True)
    assert len(observed) == 8019
    settings = AS_DIALS.model_copy(update={"levels": tuple(range(level + 1))})
    state = settings.refine(detector, beam, crystals)
    assert state.converged, state.why
    found = rmsds(state, settings, crystals, observed)
    assert np.all(np.round(found, 6) <= DIALS[level]), found  # the figures are given to so many digits


def test_perturbed_start(shared_data: Path) -> None:
    detector, beam, crystals, observed = load(shared_data / "metrology_cspad", "perturbed.expt.xz", used=False)
    assert len(observed) == 8790
    state = AS_DIALS.model_copy(update={"levels": (0, 1, 2)}).refine(detector, beam, crystals)
    assert state.converged, state.why
    assert np.all(rmsds(state, AS_DIALS, crystals, observed)[:2] <= (0.04385, 0.04904))


@pytest.mark.parametrize("outliers", ["tukey", "huber"])
@pytest.mark.parametrize("name", ["experiments.expt.xz", "perturbed.expt.xz"])
def test_robust_losses_fall_and_settle_on_all_rows(shared_data: Path, name: str, outliers: str) -> None:
    detector, beam, crystals, _ = load(shared_data / "metrology_cspad", name, used=False)
    state = Metrology(outliers=outliers, levels=(0, 1, 2), prediction="turn").refine(detector, beam, crystals)
    assert state.converged, state.why
    assert all(step.accepted for step in state.steps)
    assert all(not step.fall < 0.0 for step in state.steps)
    assert state.steps[-1].step < 0.1
    assert len(state.steps) <= 12
