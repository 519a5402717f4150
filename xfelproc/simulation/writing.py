"""Files of a simulated experiment: frames with an NXmx description, CrystFEL geometry and cell, gain, and a job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gemmi
import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray

from xfelproc.models.conventions import FLIP_XZ, HC
from xfelproc.models.experiment import DetectorGroup
from xfelproc.simulation.layout import Layout
from xfelproc.simulation.raw import Electronics
from xfelproc.simulation.settings import SimulationSettings

_MASK_PATH = "/entry/instrument/detector/pixel_mask"
_ENERGY_PATH = "/entry/instrument/beam/photon_energy"


class FrameWriter:
    """Writes ``n_frames`` frames one by one to an HDF5 file that describes itself as NXmx; close it to complete the description.

    ``bad`` are the pixels (panel, slow, fast) that its mask calls dead.
    """

    def __init__(self, path: Path, settings: SimulationSettings, layout: Layout, bad: NDArray[np.bool_], n_frames: int) -> None:
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
            (n_frames, *shape),
            dtype=np.uint16,
            chunks=(1, *shape),
            **hdf5plugin.Bitshuffle(cname="lz4"),
        )
        _describe(entry, settings, layout)
        stored = layout.assemble(np.where(bad, 2, 0).astype(np.uint16)).astype(np.uint32)
        entry["instrument/detector"].create_dataset("pixel_mask", data=stored, compression="gzip")

    def write(self, stored: NDArray[np.uint16], wavelength: float) -> None:
        """Append a frame (slow, fast)."""
        self._data[len(self._wavelengths)] = stored
        self._wavelengths.append(wavelength)

    def __enter__(self) -> FrameWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
    detector["saturation_value"] = _largest(settings)
    detector["underload_value"] = 0
    detector["bit_depth_readout"] = 16
    detector["depends_on"] = "/entry/instrument/detector/transformations/distance"
    moves = _group(detector, "transformations", "NXtransformations")
    move = moves.create_dataset("distance", data=settings.detector.distance)
    move.attrs.update(transformation_type="translation", vector=(0.0, 0.0, 1.0), depends_on=".", units="mm")
    above = _describe_tree(moves, layout.detector.hierarchy, settings.detector.distance, len(layout.slots))
    for panel, (fast0, slow0), (parent, place) in zip(layout.detector.panels, layout.slots, above, strict=True):
        module = _group(detector, f"module_{panel.name}" if len(layout.slots) > 1 else "module", "NXdetector_module")
        module["data_origin"] = (slow0, fast0)
        module["data_size"] = (panel.image_size[1], panel.image_size[0])
        _vector(module, "module_offset", FLIP_XZ @ panel.origin - place, parent)
        where = f"{module.name}/module_offset"
        _vector(module, "fast_pixel_direction", FLIP_XZ @ panel.fast_axis * panel.pixel_size[0], where)
        _vector(module, "slow_pixel_direction", FLIP_XZ @ panel.slow_axis * panel.pixel_size[1], where)


def _largest(settings: SimulationSettings) -> int:
    """Return the largest value that is a measurement; where bits tell the stage, no value is too large as such."""
    raw = settings.raw
    if raw is None:
        return settings.detector.saturation - 1
    return 65535 if len(raw.stages) > 1 else (1 << raw.bits) - 2


def _describe_tree(
    moves: h5py.Group, tree: DetectorGroup | None, distance: float, n_panels: int
) -> list[tuple[str, NDArray[np.float64]]]:
    """Write a translation for each part of the detector; return, for each panel, the one it hangs on and where that is."""
    start = (f"{moves.name}/distance", np.array([0.0, 0.0, distance]))
    above = [start] * n_panels

    def write(group: DetectorGroup, parent: tuple[str, NDArray[np.float64]]) -> None:
        place = FLIP_XZ @ group.origin
        _vector(moves, group.name, place - parent[1], parent[0])
        here = (f"{moves.name}/{group.name}", place)
        for child in group.children:
            if isinstance(child, DetectorGroup):
                write(child, here)
            else:
                above[child] = here

    if tree is not None:
        write(tree, start)
    return above


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
        "adu_per_photon = 1" if settings.raw is None else f"adu_per_eV = {settings.raw.stages[0].gain / 1000.0:.6f}",
        f"max_adu = {_largest(settings)}",
        "data = /entry/data/data",
        "dim0 = %",
        "dim1 = ss",
        "dim2 = fs",
        f"mask = {_MASK_PATH}",
        "mask_good = 0x0",
        "mask_bad = 0xffffffff",
        "",
        *_rigid_groups(layout.detector.hierarchy, layout),
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


def _rigid_groups(tree: DetectorGroup | None, layout: Layout) -> list[str]:
    """Return the lines of the detector's parts, and of a collection for each level of them."""
    lines: list[str] = []
    collections: list[str] = []
    level = [] if tree is None else [c for c in tree.children if isinstance(c, DetectorGroup)]
    for name in ("quadrants", "sensors"):
        if not level:
            break
        for group in level:
            lines.append(f"rigid_group_{group.name} = {','.join(layout.detector.panels[i].name for i in group.panels())}")
        collections.append(f"rigid_group_collection_{name} = {','.join(group.name for group in level)}")
        level = [c for group in level for c in group.children if isinstance(c, DetectorGroup)]
    return lines + collections


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


def write_gain(path: Path, electronics: Electronics) -> None:
    """Write the gain of each pixel and stage, as a measurement with known photons would give it."""
    with h5py.File(path, "w", libver="v110") as file:
        file["gain"] = electronics.gain
        file["gain"].attrs.update(unit="ADU/keV", note="stage, panel, slow, fast; 0: the pixel sees no photons")


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
