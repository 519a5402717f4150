"""NXmx and Dectris master files: what they say of detector, beam and goniometer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.io.exchange.nexus_axes import ANGLES, LENGTHS, Axis, factor_of, frame_of, read_axis, read_chain, text
from xfelproc.io.exchange.nexus_fields import find, number, scalar
from xfelproc.io.sources.attenuation import attenuation, material_of
from xfelproc.models.conventions import FLIP_XZ, HC
from xfelproc.models.experiment import Beam, Detector, DetectorGroup, Experiment, Goniometer, Panel, Scan, as_vector

Floats = NDArray[np.float64]

_ENERGIES = {"ev": 1.0, "kev": 1e3, "mev": 1e6, "j": 6.241509074460763e18}
_WAVELENGTHS = {"angstrom": 1.0, "angstroms": 1.0, "å": 1.0, "a": 1.0, "nm": 10.0, "m": 1e10, "pm": 0.01}


@dataclass(frozen=True)
class Module:
    """One panel: its axes, pixel size (mm), and its region of a frame's array (origin and size, slow to fast)."""

    name: str
    chain: tuple[Axis, ...]
    fast: Axis
    slow: Axis
    slow_chain: tuple[Axis, ...]
    pixel_size: tuple[float, float]
    origin: tuple[int, ...]
    size: tuple[int, ...]


@dataclass(frozen=True)
class NexusFile:
    """What a NeXus or Dectris master says. ``wavelengths``: one, or one a frame; empty if the file does not know it."""

    path: str
    entry: str
    detector_path: str
    format: str
    modules: tuple[Module, ...]
    wavelengths: tuple[float, ...]
    beam: Beam
    goniometer: Goniometer | None
    scan: Scan | None
    trusted_range: tuple[float, float]
    thickness: float
    material: str
    pixel_mask: str = ""
    images_expected: int = 0
    notes: tuple[str, ...] = field(default=())

    def wavelength(self, index: int = 0) -> float:
        """Return the wavelength of a frame in Å, NaN if it is not known."""
        if not self.wavelengths:
            return float("nan")
        return self.wavelengths[index] if len(self.wavelengths) > 1 else self.wavelengths[0]

    def reference_wavelength(self) -> float:
        """Return the wavelength in Å of the first frame that has a possible one; NaN if none has.

        What belongs to the detector (attenuation) is taken at it: it must not depend on which frame is read first.
        """
        return _first_possible(self.wavelengths)

    def geometry_key(self, index: int) -> tuple[float, ...]:
        """Return what the detector's position at a frame depends on."""
        axes = {a.path: a for m in self.modules for a in (*m.chain, *m.slow_chain)}
        return tuple(a.value(index) for a in axes.values() if len(a.values) > 1)

    def detector(self, index: int = 0) -> Detector:
        """Return the detector at a frame, in our laboratory frame."""
        mu = attenuation(self.material, self.reference_wavelength())
        panels = tuple(self._panel(m, index, mu) for m in self.modules)
        return Detector(panels, _hierarchy(self.modules, index))

    def _panel(self, module: Module, index: int, mu: float) -> Panel:
        rotation, move = frame_of(module.chain, index)
        slow_rotation, _ = frame_of(module.slow_chain, index)
        return Panel(
            name=module.name,
            fast_axis=as_vector(FLIP_XZ @ rotation @ np.asarray(module.fast.vector)),
            slow_axis=as_vector(FLIP_XZ @ slow_rotation @ np.asarray(module.slow.vector)),
            origin=as_vector(FLIP_XZ @ (rotation @ np.asarray(module.fast.offset) + move)),
            pixel_size=module.pixel_size,
            image_size=(module.size[-1], module.size[-2]),
            trusted_range=self.trusted_range,
            thickness=self.thickness,
            material=self.material,
            mu=mu,
            raw_image_offset=(module.origin[-1], module.origin[-2]) if len(module.origin) >= 2 else (0, 0),
        )

    def experiment(self, index: int = 0) -> Experiment:
        """Return the models of a frame; a wavelength that is not known is NaN."""
        beam = Beam(**{**self.beam.__dict__, "wavelength": self.wavelength(index)})
        return Experiment(beam, self.detector(index), self.goniometer, self.scan, image=(self.path, index))


def _hierarchy(modules: tuple[Module, ...], index: int) -> DetectorGroup | None:
    """Return the tree that the axes shared by several modules make; None if all modules hang on one."""
    if len(modules) < 2:
        return None
    outwards = [tuple(reversed(m.chain)) for m in modules]
    root = _node("detector", list(range(len(modules))), outwards, 0, index)
    return root if any(isinstance(c, DetectorGroup) for c in root.children) else None


def _node(name: str, members: list[int], outwards: list[tuple[Axis, ...]], depth: int, index: int) -> DetectorGroup:
    first = outwards[members[0]]
    while all(len(outwards[m]) > depth and outwards[m][depth].path == first[min(depth, len(first) - 1)].path for m in members):
        depth += 1
    rotation, move = frame_of(tuple(reversed(first[:depth])), index)
    if depth:
        name = first[depth - 1].path.rsplit("/", 1)[-1] if name != "detector" else name
    below: dict[str, list[int]] = {}
    for m in members:
        below.setdefault(outwards[m][depth].path if len(outwards[m]) > depth else f"#{m}", []).append(m)
    children: list[DetectorGroup | int] = []
    for key, inside in below.items():
        if len(inside) == 1:
            children.append(inside[0])
        else:
            children.append(_node(key.rsplit("/", 1)[-1], inside, outwards, depth, index))
    frame = FLIP_XZ @ rotation
    return DetectorGroup(name, tuple(children), as_vector(frame[:, 0]), as_vector(frame[:, 1]), as_vector(FLIP_XZ @ move))


def is_nexus(file: Any) -> bool:
    """Return whether an open file looks like NXmx or a Dectris master."""
    for entry in find(file, "NXentry", "entry"):
        if any(find(instrument, "NXdetector", "detector") for instrument in find(entry, "NXinstrument", "instrument")):
            return True
    return False


def read_nexus(path: str | Path, file: Any = None) -> NexusFile:
    """Read what an NXmx or Dectris master says of geometry, beam and goniometer.

    Raises
    ------
    DataError
        If it cannot be opened, or its geometry is not complete.
    """
    where = str(path)
    if file is None:
        try:
            with h5py.File(where, "r", locking=False) as opened:
                return _read(opened, where)
        except OSError as error:
            raise DataError(f"cannot open as HDF5 ({str(error)[:160]}): check the path", where) from error
    return _read(file, where)


def _read(file: Any, path: str) -> NexusFile:
    entries = find(file, "NXentry", "entry")
    instruments = [i for e in entries for i in find(e, "NXinstrument", "instrument")]
    detectors = [d for i in instruments for d in find(i, "NXdetector", "detector")]
    if not detectors:
        raise DataError("there is no NXdetector: this is neither NXmx nor a Dectris master, give a geometry", path)
    entry, instrument = entries[0], instruments[0]
    detector = next((d for d in detectors if find(d, "NXdetector_module", "module")), detectors[0])
    notes: list[str] = []
    if len(detectors) > 1:
        notes.append(f"{len(detectors)} detectors in the file: {detector.name} is used")
    wavelengths, beam = _beam(entry, instrument, notes)
    material = text(scalar(detector, "sensor_material")[()]) if scalar(detector, "sensor_material") is not None else ""
    thickness = number(detector, LENGTHS, 1000.0, "sensor_thickness") or 0.0
    if not thickness or not material_of(material):
        notes.append("no sensor thickness or material: no parallax")
    goniometer, scan = _goniometer(entry, detector, path, notes)
    mask = next((f"{detector.name}/{n}" for n in ("pixel_mask", "detectorSpecific/pixel_mask") if n in detector), "")
    definition = scalar(entry, "definition")
    return NexusFile(
        path=path,
        entry=str(entry.name),
        detector_path=str(detector.name),
        format="NXmx" if definition is not None and text(definition[()]) == "NXmx" else "Dectris HDF5",
        modules=_modules(detector, path, notes),
        wavelengths=wavelengths,
        beam=beam,
        goniometer=goniometer,
        scan=scan,
        trusted_range=_trusted(detector, notes),
        thickness=thickness,
        material=material_of(material),
        pixel_mask=mask,
        images_expected=_images(detector),
        notes=tuple(notes),
    )


def _images(detector: Any) -> int:
    specific = detector.get("detectorSpecific", {})
    images = number(specific, None, 1.0, "nimages") or 0
    return int(images * (number(specific, None, 1.0, "ntrigger") or 1))


def _trusted(detector: Any, notes: list[str]) -> tuple[float, float]:
    """Return the lowest and highest value that is a measurement."""
    low = number(detector, None, 1.0, "underload_value")
    highs = [number(detector, None, 1.0, name) for name in ("saturation_value", "detectorSpecific/saturation_value")]
    highs.append(
        number(detector, None, 1.0, "detectorSpecific/countrate_correction_count_cutoff", "countrate_correction_count_cutoff")
    )
    known = [h for h in highs if h is not None and h > 0]
    if not known:
        notes.append("no saturation_value: no pixel is taken for saturated")
    return (0.0 if low is None else low, min(known) if known else float("inf"))


def _beam(entry: Any, instrument: Any, notes: list[str]) -> tuple[tuple[float, ...], Beam]:
    """Return the wavelengths (one, or one a frame) and the beam."""
    places = find(instrument, "NXbeam", "beam") + [b for s in find(entry, "NXsample", "sample") for b in find(s, "NXbeam", "beam")]
    values: Floats = np.empty(0)
    beam = Beam(wavelength=float("nan"))
    for group in places:
        values = _wavelengths(group)
        if values.size:
            beam = _polarised(group, _first_possible(values.tolist()), notes)
            break
    if not values.size:
        single = number(instrument, _WAVELENGTHS, 1.0, "beam/wavelength", "monochromator/wavelength")
        values = np.array([single]) if single is not None else values
        notes.append("polarisation not given: the default is assumed")
    if not values.size:
        notes.append("no wavelength in the file")
    elif np.ptp(values) == 0:
        values = values[:1]
    return tuple(float(v) for v in values), beam


def _first_possible(wavelengths: Sequence[float]) -> float:
    return next((value for value in wavelengths if 0 < value < 1000), float("nan"))


def _wavelengths(group: Any) -> Floats:
    """Return the wavelength(s) in Å of an NXbeam; spectra are reduced to their weighted means."""
    dataset = scalar(group, "incident_wavelength", "wavelength")
    if dataset is not None:
        unit = text(dataset.attrs.get("units", "angstrom"))
        values = np.asarray(dataset[()], dtype=np.float64) * factor_of(unit, _WAVELENGTHS, 1.0)
        weights = scalar(group, "incident_wavelength_weights", "incident_wavelength_weight")
        if weights is not None and values.ndim:
            w = np.broadcast_to(np.asarray(weights[()], dtype=np.float64), np.broadcast_shapes(values.shape, weights.shape))
            return np.atleast_1d(np.sum(values * w, axis=-1) / np.sum(w, axis=-1))
        return values.reshape(-1)
    dataset = scalar(group, "incident_energy", "energy")
    if dataset is not None:
        unit = text(dataset.attrs.get("units", "eV"))
        return HC / (np.asarray(dataset[()], dtype=np.float64).reshape(-1) * factor_of(unit, _ENERGIES, 1.0))
    return np.empty(0)


def _polarised(group: Any, wavelength: float, notes: list[str]) -> Beam:
    """Return the beam with bandwidth (FWHM) and the polarisation of its Stokes vector."""
    spread = number(group, _WAVELENGTHS, 1.0, "incident_wavelength_spread")
    bandwidth = spread / wavelength if spread is not None and spread > 0 else 0.0
    stokes = scalar(group, "incident_polarization_stokes", "incident_polarisation_stokes")
    flux = number(group, None, 1.0, "total_flux", "flux") or 0.0
    if stokes is None or stokes.size < 4:
        notes.append("polarisation not given: the default is assumed")
        return Beam(wavelength=wavelength, bandwidth=bandwidth, flux=flux)
    intensity, q, u, _ = (float(v) for v in np.asarray(stokes[()], dtype=np.float64).reshape(-1)[:4])
    linear = float(np.hypot(q, u))
    angle = 0.5 * float(np.arctan2(u, q))
    # the electric vector is at `angle` from x towards y in McStas's frame; its normal, in ours
    normal = FLIP_XZ @ np.array([-np.sin(angle), np.cos(angle), 0.0])
    fraction = 0.5 * (1.0 + min(1.0, linear / intensity)) if intensity > 0 else Beam(wavelength).polarization_fraction
    return Beam(wavelength, polarization_normal=as_vector(normal), polarization_fraction=fraction, bandwidth=bandwidth, flux=flux)


def _modules(detector: Any, path: str, notes: list[str]) -> tuple[Module, ...]:
    groups = find(detector, "NXdetector_module", "module")
    found = [_module(g, detector, path) for g in groups if "fast_pixel_direction" in g and "slow_pixel_direction" in g]
    if found:
        # HDF5 lists groups by name, which puts p10 before p2; the order of panels is that of the data
        origins = {m.origin for m in found}
        return tuple(sorted(found, key=lambda m: m.origin) if len(origins) == len(found) else found)
    notes.append(
        "no NXdetector_module: position from beam centre and distance, fast to the right and slow down, perpendicular to the beam"
    )
    return (_fallback(detector, path),)


def _module(group: Any, detector: Any, path: str) -> Module:
    fast, slow = read_axis(group["fast_pixel_direction"], path), read_axis(group["slow_pixel_direction"], path)
    default = text(detector["depends_on"][()]) if "depends_on" in detector else "."

    def chain(axis: Axis) -> tuple[Axis, ...]:
        start = axis.depends_on
        if start in (".", "") and "module_offset" in group:
            start = f"{group.name}/module_offset"
        elif start in (".", ""):
            start = default
        return read_chain(group, start, path)

    sizes = [axis.values[0] for axis in (fast, slow)]
    for i, name in enumerate(("x_pixel_size", "y_pixel_size")):
        stated = number(detector, LENGTHS, 1000.0, name)
        if sizes[i] <= 0:
            if stated is None or stated <= 0:
                raise DataError(f"{group.name} and {name} give no pixel size", path)
            sizes[i] = stated
    origin = tuple(int(v) for v in np.asarray(group["data_origin"][()]).reshape(-1)) if "data_origin" in group else (0, 0)
    if "data_size" not in group:
        raise DataError(f"{group.name} has no data_size", path)
    size = tuple(int(v) for v in np.asarray(group["data_size"][()]).reshape(-1))
    if len(size) < 2 or len(origin) != len(size) or min(size) < 1 or min(origin) < 0:
        raise DataError(f"{group.name}: data_origin {origin} and data_size {size} are not a region", path)
    name = str(group.name).rsplit("/", 1)[-1]
    return Module(name, chain(fast), fast, slow, chain(slow), (sizes[0], sizes[1]), origin, size)


def _fallback(detector: Any, path: str) -> Module:
    """Return one panel perpendicular to the beam, from the numbers every Dectris master has."""
    distance = number(detector, LENGTHS, 1000.0, "detector_distance", "distance")
    px, py = number(detector, LENGTHS, 1000.0, "x_pixel_size"), number(detector, LENGTHS, 1000.0, "y_pixel_size")
    cx, cy = number(detector, None, 1.0, "beam_center_x"), number(detector, None, 1.0, "beam_center_y")
    nx = number(detector, None, 1.0, "detectorSpecific/x_pixels_in_detector")
    ny = number(detector, None, 1.0, "detectorSpecific/y_pixels_in_detector")
    values = {"detector_distance": distance, "x_pixel_size": px, "y_pixel_size": py, "beam_center_x": cx, "beam_center_y": cy}
    missing = [name for name, value in values.items() if value is None]
    if missing:
        raise DataError(f"{detector.name} has no module and no {', '.join(missing)}: give input.geometry", path)
    distance, px, py, cx, cy = (float(v or 0.0) for v in values.values())
    move = Axis("module_offset", "translation", (0.0, 0.0, 1.0), (cx * px, cy * py, 0.0), (distance,))
    fast = Axis("fast", "translation", (-1.0, 0.0, 0.0), (0.0, 0.0, 0.0), (px,))
    slow = Axis("slow", "translation", (0.0, -1.0, 0.0), (0.0, 0.0, 0.0), (py,))
    # a size that is not stated is taken from the frames
    return Module("module", (move,), fast, slow, (move,), (px, py), (0, 0), (int(ny or 0), int(nx or 0)))


def _goniometer(entry: Any, detector: Any, path: str, notes: list[str]) -> tuple[Goniometer | None, Scan | None]:
    exposure = number(detector, {"s": 1.0, "ms": 1e-3, "us": 1e-6}, 1.0, "count_time", "frame_time") or 0.0
    for sample in find(entry, "NXsample", "sample"):
        if "depends_on" not in sample:
            continue
        chain = [a for a in read_chain(sample, text(sample["depends_on"][()]), path) if a.kind == "rotation"]
        if not chain:
            continue
        moving = [i for i, a in enumerate(chain) if len(a.values) > 1 and np.ptp(a.values) > 0]
        if len(moving) > 1:
            notes.append(f"several sample axes move: {', '.join(chain[i].path for i in moving)}; the first is taken as the scan's")
        scan_axis = moving[0] if moving else next((i for i, a in enumerate(chain) if len(a.values) > 1), len(chain) - 1)
        goniometer = Goniometer(
            axes=tuple(as_vector(FLIP_XZ @ np.asarray(a.vector)) for a in chain),
            angles=tuple(0.0 if i == scan_axis and moving else a.values[0] for i, a in enumerate(chain)),
            names=tuple(a.path.rsplit("/", 1)[-1] for a in chain),
            scan_axis=scan_axis,
        )
        return goniometer, (_scan(chain[scan_axis], entry.file, exposure) if moving else None)
    return _plain_goniometer(entry, exposure, notes)


def _scan(axis: Axis, file: Any, exposure: float) -> Scan | None:
    step = number(file, ANGLES, 1.0, f"{axis.path}_increment_set") or float(np.mean(np.diff(axis.values)))
    return Scan((axis.values[0], step), (1, len(axis.values)), exposure) if step else None


def _plain_goniometer(entry: Any, exposure: float, notes: list[str]) -> tuple[Goniometer | None, Scan | None]:
    """Return the rotation of a Dectris master (sample/goniometer/omega), about +x, which the file does not say."""
    values = scalar(entry, "sample/goniometer/omega")
    if values is None or values.size < 2:
        return None, None
    omega = np.asarray(values[()], dtype=np.float64).reshape(-1)
    step = float(np.mean(np.diff(omega)))
    if step == 0.0:
        return None, None
    notes.append("the rotation axis is not given: +x is assumed")
    return Goniometer(), Scan((float(omega[0]), step), (1, len(omega)), exposure)
