"""What is true of a simulated experiment, and the file that says so."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray

from xfelproc.simulation.crystal import Intensities
from xfelproc.simulation.layout import Layout
from xfelproc.simulation.raw import KINDS, Electronics
from xfelproc.simulation.scene import Shot
from xfelproc.simulation.settings import SimulationSettings


@dataclass
class Truth:
    """What is true of an experiment; the lists grow by one a frame.

    ``shift`` (mm) takes the recorded detector to the true one where nothing else is wrong with it (``centre_error``).
    """

    settings: SimulationSettings
    intensities: Intensities
    layout: Layout
    recorded: Layout
    shift: NDArray[np.float64]
    electronics: Electronics | None
    shots: list[Shot] = field(default_factory=list)
    common_mode: list[NDArray[np.float32]] = field(default_factory=list)
    photons: list[NDArray[np.uint16]] = field(default_factory=list)


def write_truth(path: Path, truth: Truth) -> None:
    """Write what is true."""
    shots, intensities = truth.shots, truth.intensities
    crystals = [(frame, crystal) for frame, shot in enumerate(shots) for crystal in shot.crystals]
    with h5py.File(path, "w", libver="v110") as file:
        file.attrs["frame"] = "laboratory frame: beam to -z, y up, x = y × z; lengths mm, Å; no 2π"
        file["hit"] = np.array([len(shot.crystals) > 0 for shot in shots])
        file["n_lattices"] = np.array([len(shot.crystals) for shot in shots], dtype=np.int32)
        file["false_peaks"] = np.array([shot.false_peaks for shot in shots], dtype=np.int32)
        file["wavelength"] = np.array([shot.wavelength for shot in shots])
        file["detector_shift"] = truth.shift
        file["detector_shift"].attrs["note"] = "mm, laboratory frame: true detector = recorded detector + shift"
        file["lattice/frame"] = np.array([frame for frame, _ in crystals], dtype=np.int64)
        matrices = np.array([crystal.A for _, crystal in crystals]).reshape(-1, 3, 3)
        file["lattice/A"] = matrices
        file["lattice/A"].attrs["note"] = "columns a*, b*, c* in 1/Å, laboratory frame of this file; mosaic blocks average to it"
        file["lattice/cell"] = np.array([crystal.cell for _, crystal in crystals]).reshape(-1, 6)
        for name in ("scale", "domain_size", "mosaicity"):
            file[f"lattice/{name}"] = np.array([getattr(crystal, name) for _, crystal in crystals], dtype=np.float64)
        file["hkl"] = intensities.hkl
        file["intensity"] = intensities.values
        file["intensity"].attrs["note"] = (
            "unique reflections; Friedel mates are equal; times a lattice's scale: photons if fully recorded"
        )
        file.attrs["space_group"] = intensities.space_group.hm
        _write_geometries(file, truth)
        if truth.electronics is not None:
            _write_raw(file, truth, truth.electronics)


def _write_geometries(file: h5py.File, truth: Truth) -> None:
    for name, layout in (("true", truth.layout), ("recorded", truth.recorded)):
        file[f"geometry/{name}"] = layout.geometry
        file[f"geometry/{name}"].attrs["note"] = "panel; first pixel's corner, one pixel along fast, one along slow; mm"
    file["geometry"].attrs["panels"] = [panel.name for panel in truth.layout.detector.panels]


def _write_raw(file: h5py.File, truth: Truth, electronics: Electronics) -> None:
    group = file.create_group("raw")
    group.attrs["asic"] = electronics.settings.asic
    for name in ("pedestal", "noise", "gain"):
        group[name] = getattr(electronics, name)
        group[name].attrs.update(unit="ADU/keV" if name == "gain" else "ADU", note="stage, panel, slow, fast")
    for number, kind in enumerate(KINDS, 1):
        group[f"bad/{kind}"] = np.argwhere(electronics.kind == number).astype(np.int32)
    group["unbonded"] = np.argwhere(electronics.unbonded).astype(np.int32)
    group["common_mode"] = np.array(truth.common_mode)
    group["common_mode"].attrs["note"] = "frame, panel, ASIC along slow, ASIC along fast; ADU; in the first stage alone"
    if truth.photons:
        photons = np.array(truth.photons)
        group.create_dataset("photons", data=photons, chunks=(1, 1, *photons.shape[2:]), **hdf5plugin.Bitshuffle(cname="lz4"))
        group["photons"].attrs["note"] = "of the first frames: photons that reached each pixel"
