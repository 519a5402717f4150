"""Writing a geometry as NXmx: one NXdetector with a module a panel, and the hierarchy as NXtransformations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from xfelproc.io.atomic import write_atomic
from xfelproc.io.exchange.dials_expt import rotation_vector
from xfelproc.io.exchange.geom_write import unique_names
from xfelproc.models.conventions import FLIP_XZ
from xfelproc.models.experiment import Beam, Detector, DetectorGroup, Experiment, Goniometer, Scan

Floats = NDArray[np.float64]
_DETECTOR = "/entry/instrument/detector"


def write_nexus_geometry(experiment: Experiment, path: str | Path) -> None:
    """Write detector, beam and goniometer as NXmx, without frames; the file appears whole.

    Lengths are in mm, angles in degrees, positions in McStas's frame.
    """
    with h5py.File("geometry.nxs", "w", driver="core", backing_store=False) as file:
        put_geometry(file, experiment)
        file.flush()
        image = file.id.get_file_image()
    write_atomic(Path(path), image)


def put_geometry(file: Any, experiment: Experiment) -> None:
    """Write the same into an open HDF5 file, as its group ``entry``."""
    entry = _group(file, "entry", "NXentry")
    entry.create_dataset("definition", data="NXmx")
    instrument = _group(entry, "instrument", "NXinstrument")
    _write_beam(instrument, experiment.beam)
    _write_detector(instrument, experiment.detector)
    sample = _group(entry, "sample", "NXsample")
    if experiment.scan is not None:
        _number(instrument["detector"], "count_time", experiment.scan.exposure_time, "s")
    if experiment.goniometer is not None:
        _write_goniometer(sample, experiment.goniometer, experiment.scan)


def _group(parent: Any, name: str, nx_class: str) -> Any:
    group = parent.create_group(name)
    group.attrs["NX_class"] = nx_class
    return group


def _axis(
    group: Any, name: str, kind: str, vector: Any, values: Any, depends_on: str, offset: Any = (0.0, 0.0, 0.0), unit: str = ""
) -> str:
    """Write one axis and return its path."""
    dataset = group.create_dataset(name, data=np.asarray(values, dtype=np.float64))
    dataset.attrs["transformation_type"] = kind
    dataset.attrs["vector"] = np.asarray(vector, dtype=np.float64)
    dataset.attrs["offset"] = np.asarray(offset, dtype=np.float64)
    dataset.attrs["offset_units"] = "mm"
    dataset.attrs["units"] = unit or ("deg" if kind == "rotation" else "mm")
    dataset.attrs["depends_on"] = depends_on
    return str(dataset.name)


def _number(group: Any, name: str, value: Any, unit: str) -> None:
    group.create_dataset(name, data=value).attrs["units"] = unit


def _write_beam(instrument: Any, beam: Beam) -> None:
    group = _group(instrument, "beam", "NXbeam")
    if np.isfinite(beam.wavelength):
        _number(group, "incident_wavelength", beam.wavelength, "angstrom")
        if beam.bandwidth:
            _number(group, "incident_wavelength_spread", beam.bandwidth * beam.wavelength, "angstrom")
    x, y, _ = FLIP_XZ @ np.asarray(beam.polarization_normal)
    angle, linear = float(np.arctan2(-x, y)), 2.0 * beam.polarization_fraction - 1.0
    group.create_dataset("incident_polarization_stokes", data=[1.0, linear * np.cos(2 * angle), linear * np.sin(2 * angle), 0.0])
    if beam.flux:
        _number(group, "total_flux", beam.flux, "Hz")


def _write_detector(instrument: Any, detector: Detector) -> None:
    group = _group(instrument, "detector", "NXdetector")
    moves = _group(group, "transformations", "NXtransformations")
    above: dict[int, tuple[str, Floats, Floats]] = {}
    lab = (".", np.eye(3), np.zeros(3))
    tree = detector.hierarchy or DetectorGroup("detector", tuple(range(len(detector))))
    nodes: list[DetectorGroup] = []

    def collect(node: DetectorGroup) -> None:
        nodes.append(node)
        for child in node.children:
            if isinstance(child, DetectorGroup):
                collect(child)

    collect(tree)
    names = iter(unique_names([n.name or "detector" for n in nodes]))

    def write(node: DetectorGroup, outer: tuple[str, Floats, Floats]) -> None:
        rotation, origin = FLIP_XZ @ _frame(node), FLIP_XZ @ np.asarray(node.origin)
        vector = rotation_vector(outer[1].T @ rotation)
        angle = float(np.linalg.norm(vector))
        direction = vector / angle if angle > 0 else np.array([0.0, 0.0, 1.0])
        path = _axis(moves, next(names), "rotation", direction, [np.degrees(angle)], outer[0], outer[1].T @ (origin - outer[2]))
        for child in node.children:
            if isinstance(child, DetectorGroup):
                write(child, (path, rotation, origin))
            else:
                above[child] = (path, rotation, origin)

    write(tree, lab)
    group.create_dataset("depends_on", data=f"{_DETECTOR}/transformations/{next(iter(unique_names([tree.name or 'detector'])))}")
    _write_sensor(group, detector)
    for number, name in enumerate(unique_names([p.name or "module" for p in detector.panels])):
        _write_module(group, detector, number, name, above.get(number, lab))


def _frame(node: DetectorGroup) -> Floats:
    fast, slow = np.asarray(node.fast_axis), np.asarray(node.slow_axis)
    return np.column_stack([fast, slow, np.cross(fast, slow)])


def _write_sensor(group: Any, detector: Detector) -> None:
    first = detector.panels[0]
    group.create_dataset("type", data="Pixel")
    if first.thickness:
        _number(group, "sensor_thickness", first.thickness / 1000.0, "m")
        group.create_dataset("sensor_material", data=first.material)
    low, high = first.trusted_range
    if np.isfinite(high):
        group.create_dataset("saturation_value", data=high)
    if np.isfinite(low):
        group.create_dataset("underload_value", data=low)
    _number(group, "x_pixel_size", first.pixel_size[0], "mm")
    _number(group, "y_pixel_size", first.pixel_size[1], "mm")


def _write_module(group: Any, detector: Detector, number: int, name: str, outer: tuple[str, Floats, Floats]) -> None:
    panel = detector.panels[number]
    module = _group(group, name, "NXdetector_module")
    n_fast, n_slow = panel.image_size
    several = len(detector) > 1
    module.create_dataset("data_origin", data=np.array([number, 0, 0] if several else [0, 0], dtype=np.int32))
    module.create_dataset("data_size", data=np.array([1, n_slow, n_fast] if several else [n_slow, n_fast], dtype=np.int32))
    path, rotation, origin = outer
    # by the inverse, not the transpose: a group's axes may be skew by rounding
    inverse = np.linalg.inv(rotation)
    move = inverse @ (FLIP_XZ @ np.asarray(panel.origin) - origin)
    length = float(np.linalg.norm(move))
    offset = _axis(module, "module_offset", "translation", move / length if length else (1.0, 0.0, 0.0), [length], path)
    for key, vector, size in (("fast", panel.fast_axis, panel.pixel_size[0]), ("slow", panel.slow_axis, panel.pixel_size[1])):
        _axis(module, f"{key}_pixel_direction", "translation", inverse @ FLIP_XZ @ np.asarray(vector), [size], offset)


def _write_goniometer(sample: Any, goniometer: Goniometer, scan: Scan | None) -> None:
    moves = _group(sample, "transformations", "NXtransformations")
    outer = "."
    names = unique_names([n or "axis" for n in goniometer.names])
    for i in reversed(range(len(goniometer.axes))):
        values = [goniometer.angles[i]]
        if i == goniometer.scan_axis and scan is not None:
            first, last = scan.image_range
            values = [scan.oscillation[0] + scan.oscillation[1] * k for k in range(last - first + 1)]
            _number(moves, f"{names[i]}_increment_set", scan.oscillation[1], "deg")
        outer = _axis(moves, names[i], "rotation", FLIP_XZ @ np.asarray(goniometer.axes[i]), values, outer)
    sample.create_dataset("depends_on", data=outer)
