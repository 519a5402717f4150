"""Files of a simulated experiment: frames with an NXmx description, CrystFEL geometry and cell, truth, and a job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gemmi
import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray

from xfelproc.models.conventions import FLIP_XZ, HC
from xfelproc.simulation.crystal import Intensities
from xfelproc.simulation.layout import Layout
from xfelproc.simulation.scene import Shot
from xfelproc.simulation.settings import SimulationSettings

_MASK_PATH = "/entry/instrument/detector/pixel_mask"
_ENERGY_PATH = "/entry/instrument/beam/photon_energy"


class FrameWriter:
    """Writes frames one by one to an HDF5 file that describes itself as NXmx; close it to complete the description."""

    def __init__(self, path: Path, settings: SimulationSettings, layout: Layout, dead: NDArray[np.bool_]) -> None:
        self._file = h5py.File(path, "w", libver="v110")
        self._settings = settings
        self._wavelengths: list[float] = []
        shape = layout.shape
        entry = _group(self._file, "entry", "NXentry")
        entry["definition"] = "NXmx"
        data = _group(entry, "data", "NXdata")
        data.attrs["signal"] = "data"
        self._data = data.create_dataset(
            "data",
            (settings.frames, *shape),
            dtype=np.uint16,
            chunks=(1, *shape),
            **hdf5plugin.Bitshuffle(cname="lz4"),
        )
        _describe(entry, settings, layout)
        stored = layout.assemble(np.where(dead, 2, 0).astype(np.uint16)).astype(np.uint32)
        entry["instrument/detector"].create_dataset("pixel_mask", data=stored, compression="gzip")

    def write(self, stored: NDArray[np.uint16], wavelength: float) -> None:
        """Append a frame (slow, fast)."""
        self._data[len(self._wavelengths)] = stored
        self._wavelengths.append(wavelength)

    def close(self) -> None:
        """Write what is known of each frame, and close."""
        beam = self._file["entry/instrument/beam"]
        values = np.array(self._wavelengths)
        beam.create_dataset("incident_wavelength", data=values).attrs["units"] = "angstrom"
        beam.create_dataset("photon_energy", data=HC / values).attrs["units"] = "eV"
        self._file.close()


def _group(parent: h5py.Group, name: str, kind: str) -> h5py.Group:
    group = parent.create_group(name)
    group.attrs["NX_class"] = kind
    return group


def _describe(entry: h5py.Group, settings: SimulationSettings, layout: Layout) -> None:
    """Write source, sample, beam and detector as the application definition NXmx asks; vectors are in McStas's frame."""
    source = _group(entry, "source", "NXsource")
    source["name"] = "simulated"
    sample = _group(entry, "sample", "NXsample")
    sample["name"] = "simulated"
    sample["depends_on"] = "."
    instrument = _group(entry, "instrument", "NXinstrument")
    instrument["name"] = "simulated"
    beam = _group(instrument, "beam", "NXbeam")
    spread = beam.create_dataset("incident_wavelength_spread", data=settings.beam.bandwidth * settings.beam.wavelength)
    spread.attrs["units"] = "angstrom"
    f = settings.beam.polarization
    beam["incident_polarization_stokes"] = np.array([1.0, 2.0 * f - 1.0, 0.0, 0.0])
    detector = _group(instrument, "detector", "NXdetector")
    detector["description"] = "simulated pixel detector"
    detector["type"] = "PIXEL"
    detector["saturation_value"] = settings.detector.saturation - 1
    detector["underload_value"] = 0
    detector["bit_depth_readout"] = 16
    detector["depends_on"] = "/entry/instrument/detector/transformations/distance"
    moves = _group(detector, "transformations", "NXtransformations")
    move = moves.create_dataset("distance", data=settings.detector.distance)
    move.attrs.update(transformation_type="translation", vector=(0.0, 0.0, 1.0), depends_on=".", units="mm")
    for panel, (fast0, slow0) in zip(layout.detector.panels, layout.slots, strict=True):
        module = _group(detector, f"module_{panel.name}" if len(layout.slots) > 1 else "module", "NXdetector_module")
        module["data_origin"] = (slow0, fast0)
        module["data_size"] = (panel.image_size[1], panel.image_size[0])
        offset = FLIP_XZ @ panel.origin - np.array([0.0, 0.0, settings.detector.distance])
        _vector(module, "module_offset", offset, detector["depends_on"][()].decode())
        where = f"{module.name}/module_offset"
        _vector(module, "fast_pixel_direction", FLIP_XZ @ panel.fast_axis * panel.pixel_size[0], where)
        _vector(module, "slow_pixel_direction", FLIP_XZ @ panel.slow_axis * panel.pixel_size[1], where)


def _vector(module: h5py.Group, name: str, vector: NDArray[np.float64], depends_on: str) -> None:
    length = float(np.linalg.norm(vector))
    field = module.create_dataset(name, data=length)
    direction = vector / length if length > 0 else np.array([0.0, 0.0, 1.0])
    field.attrs.update(transformation_type="translation", vector=direction, depends_on=depends_on, units="mm")


def write_geometry(path: Path, settings: SimulationSettings, layout: Layout) -> None:
    """Write the layout as a CrystFEL geometry for the HDF5 file of frames."""
    distance = settings.detector.distance
    lines = [
        "; simulated detector",
        f"photon_energy = {_ENERGY_PATH} eV",
        f"clen = {distance / 1000:.7f}",
        f"res = {1000.0 / settings.detector.pixel_size:.6f}",
        "adu_per_photon = 1",
        f"max_adu = {settings.detector.saturation - 1}",
        "data = /entry/data/data",
        "dim0 = %",
        "dim1 = ss",
        "dim2 = fs",
        f"mask = {_MASK_PATH}",
        "mask_good = 0x0",
        "mask_bad = 0xffffffff",
    ]
    for panel, (fast0, slow0) in zip(layout.detector.panels, layout.slots, strict=True):
        corner = FLIP_XZ @ panel.origin
        name = panel.name
        lines += [
            "",
            f"{name}/min_fs = {fast0}",
            f"{name}/max_fs = {fast0 + panel.image_size[0] - 1}",
            f"{name}/min_ss = {slow0}",
            f"{name}/max_ss = {slow0 + panel.image_size[1] - 1}",
            f"{name}/corner_x = {corner[0] / settings.detector.pixel_size:.6f}",
            f"{name}/corner_y = {corner[1] / settings.detector.pixel_size:.6f}",
            f"{name}/coffset = {(corner[2] - distance) / 1000:.9f}",
            f"{name}/fs = {_direction(FLIP_XZ @ panel.fast_axis)}",
            f"{name}/ss = {_direction(FLIP_XZ @ panel.slow_axis)}",
        ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _direction(vector: NDArray[np.float64]) -> str:
    return " ".join(f"{value:+.9f}{axis}" for value, axis in zip(vector, "xyz", strict=True))


def write_cell(path: Path, cell: Sequence[float], space_group: str) -> None:
    """Write a CrystFEL unit cell file."""
    group = gemmi.SpaceGroup(space_group)
    system = group.crystal_system_str()
    lattice = {"trigonal": "rhombohedral" if group.hm.startswith("R") and group.ext != "H" else "hexagonal"}.get(system, system)
    centring = "H" if group.ext == "H" else group.centring_type()
    lines = ["CrystFEL unit cell file version 1.0", "", f"lattice_type = {lattice}", f"centering = {centring}"]
    if lattice in ("tetragonal", "hexagonal"):
        lines.append("unique_axis = c")
    elif lattice == "monoclinic":
        lines.append("unique_axis = b")
    lines += [f"{name} = {value:.5f} A" for name, value in zip("abc", cell[:3], strict=True)]
    lines += [f"{name} = {value:.5f} deg" for name, value in zip(("al", "be", "ga"), cell[3:], strict=True)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_truth(path: Path, shots: Sequence[Shot], intensities: Intensities, shift: NDArray[np.float64]) -> None:
    """Write what is true; ``shift`` (mm) takes the recorded detector to the true one."""
    crystals = [(frame, crystal) for frame, shot in enumerate(shots) for crystal in shot.crystals]
    with h5py.File(path, "w", libver="v110") as file:
        file.attrs["frame"] = "laboratory frame: beam to -z, y up, x = y × z; lengths mm, Å; no 2π"
        file["hit"] = np.array([len(shot.crystals) > 0 for shot in shots])
        file["n_lattices"] = np.array([len(shot.crystals) for shot in shots], dtype=np.int32)
        file["false_peaks"] = np.array([shot.false_peaks for shot in shots], dtype=np.int32)
        file["wavelength"] = np.array([shot.wavelength for shot in shots])
        file["detector_shift"] = shift
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


def write_job(path: Path, frames: Path, settings: SimulationSettings, cell: Sequence[float]) -> None:
    """Write a job that processes the frames; paths in it are relative to it."""
    lines = ['recipe = "stills"', "", "[input]", f'files = ["{frames.name}"]']
    if settings.give_cell:
        values = ", ".join(f"{value:.4f}" for value in cell)
        lines += ["", "[index]", f"cell = [{values}]", f'space_group = "{settings.crystal.space_group}"']
        if settings.lattices > 1:
            lines.append(f"max_lattices = {settings.lattices}")
    elif settings.lattices > 1:
        lines += ["", "[index]", f"max_lattices = {settings.lattices}"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
