"""Prediction of sweeps against DIALS (fixed and drifting crystals, several goniometer settings) and an independent simulator."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import h5py
import numpy as np
import pytest

from xfelproc.geometry.rotation import Sweep
from xfelproc.io.exchange.dials_expt import read_expt
from xfelproc.io.sources import open_source
from xfelproc.models.conventions import FLIP_XZ
from xfelproc.models.experiment import Crystal, as_matrix

INTEGRATED = 1 << 8


@pytest.mark.parametrize("name", ["20", "25", "30", "35"])
def test_drifting_crystals(shared_data: Path, name: str) -> None:
    """The sweeps differ in their fixed rotations, one in its scan axis; the crystal drifts. DIALS turns in steps of a frame."""
    folder = shared_data / "rotation_lcysteine_integrated"
    path = folder / f"{name}_integrated.expt.xz"
    experiment = read_expt(path)[0]
    matrices = np.array(json.loads(lzma.decompress(path.read_bytes()))["crystal"][0]["A_at_scan_points"]).reshape(-1, 3, 3)
    assert experiment.goniometer is not None
    assert experiment.scan is not None
    sweep = Sweep(experiment.beam, experiment.detector, experiment.goniometer, experiment.scan, matrices)
    with h5py.File(folder / f"{name}_integrated.h5") as file:
        integrated = (file["flags"][:] & INTEGRATED) > 0
        calculated = file["xyzcal.px"][integrated] - [0, 0, experiment.scan.image_range[0] - 1]
        hkl, panel = file["miller_index"][integrated], file["panel"][integrated].astype(np.int32)
        zeta, entering = file["zeta"][integrated], file["entering"][integrated]
    found = sweep.predict_indices(hkl, calculated[:, 2], panel)
    assert np.abs(found - calculated).max() < 0.01
    assert np.sqrt(np.mean((found - calculated) ** 2)) < 0.0005
    predicted = sweep.predict(0.58)
    rows: dict[tuple[int, ...], list[int]] = {}
    for row, h in enumerate(predicted["hkl"]):
        rows.setdefault(tuple(h), []).append(row)
    near = [
        [row for row in rows.get(tuple(h), []) if abs(predicted["z"][row] - z) < 0.1]
        for h, z in zip(hkl, calculated[:, 2], strict=True)
    ]

    assert all(len(found) == 1 for found in near)
    ours, theirs = np.concatenate(near), slice(None)
    np.testing.assert_allclose(predicted["zeta"][ours], zeta[theirs], atol=1e-4)
    assert (predicted["entering"][ours] == entering[theirs]).all()


def test_settings_of_one_crystal(shared_data: Path) -> None:
    folder = shared_data / "rotation_multi_sweep"
    experiments = read_expt(folder / "indexed.expt.xz")
    with h5py.File(folder / "indexed.h5") as file:
        columns = {name: file[name][:] for name in ("id", "miller_index", "xyzcal.px", "panel")}
    for number, experiment in enumerate(experiments):
        assert experiment.crystal is not None
        assert experiment.goniometer is not None
        assert experiment.scan is not None
        rows = (columns["id"] == number) & (columns["xyzcal.px"][:, 0] > 0)
        assert rows.sum() > 150
        sweep = Sweep.of(experiment.crystal, experiment.beam, experiment.detector, experiment.goniometer, experiment.scan)
        calculated = columns["xyzcal.px"][rows]
        found = sweep.predict_indices(columns["miller_index"][rows], calculated[:, 2], columns["panel"][rows].astype(np.int32))
        np.testing.assert_allclose(found, calculated, atol=1e-6)


def test_simulated_sweep(shared_data: Path) -> None:
    """Angles, Lorentz factors and ζ of the simulator; its positions are means over the mosaic blocks and the spectrum."""
    folder = shared_data / "rotation_sim"
    with open_source(str(folder / "sweep_master.h5")) as source:
        experiment = source.experiment(0)
    with h5py.File(folder / "truth.h5") as file:
        matrix = FLIP_XZ @ file["crystals/A"][0]  # the simulator's frame is that of NeXus
        truth = {name: file[f"reflections/{name}"][:] for name in ("h", "k", "l", "frame", "fs", "ss", "lorentz", "zeta", "panel")}
    assert experiment.goniometer is not None
    assert experiment.scan is not None
    crystal = Crystal(as_matrix(matrix), "P 21 21 21")
    sweep = Sweep.of(crystal, experiment.beam, experiment.detector, experiment.goniometer, experiment.scan)
    hkl = np.column_stack([truth["h"], truth["k"], truth["l"]])
    found = sweep.predict_indices(hkl, truth["frame"], 0)
    np.testing.assert_allclose(found[:, 2], truth["frame"], atol=1e-6)
    assert np.hypot(found[:, 0] - truth["fs"], found[:, 1] - truth["ss"]).max() < 2.0
    predicted = sweep.predict(1.35)
    assert len(predicted) == pytest.approx(len(hkl), rel=0.02)
