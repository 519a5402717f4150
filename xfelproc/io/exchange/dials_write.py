"""Writing DIALS experiment lists: see `xfelproc.io.exchange.dials_expt`."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import ConfigError
from xfelproc.io.atomic import write_atomic
from xfelproc.models.experiment import Beam, Crystal, Detector, DetectorGroup, Experiment, Goniometer, Panel, Scan

Json = dict[str, Any]
Frame3 = tuple[NDArray[np.float64], NDArray[np.float64]]


class _Models:
    """Models of one kind, each written once: found by identity first, then by value."""

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self._by_id: dict[int, int] = {}
        self._by_value: dict[Hashable, int] = {}

    def index(self, model: Any) -> int:
        if id(model) not in self._by_id:
            if model not in self._by_value:
                self._by_value[model] = len(self.rows)
                self.rows.append(model)
            self._by_id[id(model)] = self._by_value[model]
        return self._by_id[id(model)]


def write_expt(experiments: Sequence[Experiment], path: str | Path, orthogonal: bool = False) -> None:
    """Write experiments as a DIALS experiment list.

    Parameters
    ----------
    experiments
        What to write; equal models are written once.
    path
        File to write; appears whole.
    orthogonal
        Make the axes of each panel perpendicular, about their middle, where they are not (a few CrystFEL geometries): DIALS
        refuses panels that are skew. Pixels move by half the skewness times their distance from the panel's first pixel.

    Raises
    ------
    ConfigError
        If a wavelength is not known.
    """
    write_atomic(Path(path), json.dumps(expt_content(experiments, orthogonal), allow_nan=False, indent=1).encode())


def expt_content(experiments: Sequence[Experiment], orthogonal: bool = False) -> Json:
    """Return what `write_expt` writes."""
    beams, detectors, goniometers, scans, crystals = (_Models() for _ in range(5))
    imagesets: dict[Hashable, int] = {}
    sets: list[Json] = []
    rows = []
    for experiment in experiments:
        if not np.isfinite(experiment.beam.wavelength):
            raise ConfigError("the wavelength is not known: DIALS files need it, set input.wavelength")
        row: Json = {"__id__": "Experiment", "identifier": experiment.identifier}
        row["beam"] = beams.index(experiment.beam)
        row["detector"] = detectors.index(experiment.detector)
        if experiment.goniometer is not None:
            row["goniometer"] = goniometers.index(experiment.goniometer)
        if experiment.scan is not None:
            row["scan"] = scans.index(experiment.scan)
        if experiment.crystal is not None:
            row["crystal"] = crystals.index(experiment.crystal)
        if experiment.image is not None:
            key = (experiment.image, experiment.scan)
            if key not in imagesets:
                imagesets[key] = len(sets)
                sets.append(imageset_content(experiment.image, experiment.scan))
            row["imageset"] = imagesets[key]
        rows.append(row)
    return {
        "__id__": "ExperimentList",
        "experiment": rows,
        "imageset": sets,
        "beam": [beam_content(b) for b in beams.rows],
        "detector": [detector_content(d, orthogonal) for d in detectors.rows],
        "goniometer": [goniometer_content(g) for g in goniometers.rows],
        "scan": [scan_content(s) for s in scans.rows],
        "crystal": [crystal_content(c) for c in crystals.rows],
        "profile": [],
        "scaling_model": [],
    }


def imageset_content(image: tuple[str, int], scan: Scan | None) -> Json:
    """Return the image set of an experiment."""
    common: Json = {"mask": None, "gain": None, "pedestal": None, "dx": None, "dy": None, "params": {}}
    name, index = image
    if scan is None:
        return {"__id__": "ImageSet", "images": [name], "single_file_indices": [index], **common}
    first, last = scan.image_range
    row: Json = {"__id__": "ImageSequence", "template": name, **common}
    if "#" not in name:
        row["single_file_indices"] = list(range(first - 1, last))
    return row


def beam_content(beam: Beam) -> Json:
    """Return a beam as DIALS has it."""
    return {
        "__id__": "monochromatic",
        "direction": list(beam.direction),
        "wavelength": beam.wavelength,
        "divergence": beam.divergence,
        "sigma_divergence": 0.0,
        "polarization_normal": list(beam.polarization_normal),
        "polarization_fraction": beam.polarization_fraction,
        "flux": beam.flux,
        "transmission": 1.0,
    }


def _square(fast: NDArray[np.float64], slow: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the two perpendicular unit vectors nearest to a skew pair, in the same plane."""
    plus, minus = fast + slow, fast - slow
    plus, minus = plus / np.linalg.norm(plus), minus / np.linalg.norm(minus)
    return (plus + minus) / np.sqrt(2.0), (plus - minus) / np.sqrt(2.0)


def _local(fast: Any, slow: Any, origin: Any, outer: Frame3) -> Json:
    """Return a frame as it is seen from ``outer``."""
    inverse = np.linalg.inv(outer[0])
    return {
        "fast_axis": (inverse @ np.asarray(fast)).tolist(),
        "slow_axis": (inverse @ np.asarray(slow)).tolist(),
        "origin": (inverse @ (np.asarray(origin) - outer[1])).tolist(),
    }


def detector_content(detector: Detector, orthogonal: bool = False) -> Json:
    """Return a detector; see `write_expt` for ``orthogonal``."""
    lab: Frame3 = (np.eye(3), np.zeros(3))
    outer: dict[int, Frame3] = {}
    tree = detector.hierarchy or DetectorGroup("", tuple(range(len(detector))))

    def group(node: DetectorGroup, above: Frame3) -> Json:
        fast, slow = np.asarray(node.fast_axis), np.asarray(node.slow_axis)
        frame = (np.column_stack([fast, slow, np.cross(fast, slow)]), np.asarray(node.origin))
        children: list[Json] = []
        for child in node.children:
            if isinstance(child, int):
                outer[child] = frame
                children.append({"panel": child})
            else:
                children.append(group(child, frame))
        empty = {"raw_image_offset": [0, 0], "image_size": [0, 0], "pixel_size": [0.0, 0.0], "trusted_range": [0.0, 0.0]}
        sensor = {"thickness": 0.0, "material": "", "mu": 0.0, "identifier": "", "mask": [], "gain": 1.0, "pedestal": 0.0}
        strategy = {"px_mm_strategy": {"type": "SimplePxMmStrategy"}}
        return {
            "name": node.name,
            "type": "",
            **_local(fast, slow, node.origin, above),
            **empty,
            **sensor,
            **strategy,
            "children": children,
        }

    hierarchy = group(tree, lab)
    return {"panels": [_panel(p, outer.get(i, lab), orthogonal) for i, p in enumerate(detector.panels)], "hierarchy": hierarchy}


def _panel(panel: Panel, outer: Frame3, orthogonal: bool) -> Json:
    fast, slow = np.asarray(panel.fast_axis), np.asarray(panel.slow_axis)
    if orthogonal and abs(float(fast @ slow)) > 1e-7:
        fast, slow = _square(fast, slow)
    parallax = panel.mu > 0 and panel.thickness > 0
    # JSON has no infinity; values beyond these are no pixels' values
    low, high = np.clip(panel.trusted_range, -1e30, 1e30).tolist()
    return {
        "name": panel.name,
        "type": "SENSOR_PAD",
        **_local(fast, slow, panel.origin, outer),
        "raw_image_offset": list(panel.raw_image_offset),
        "image_size": list(panel.image_size),
        "pixel_size": list(panel.pixel_size),
        "trusted_range": [low, high],
        "thickness": panel.thickness,
        "material": panel.material,
        "mu": panel.mu,
        "identifier": "",
        "mask": [list(rectangle) for rectangle in panel.mask],
        "gain": panel.gain,
        "pedestal": panel.pedestal,
        "px_mm_strategy": {"type": "ParallaxCorrectedPxMmStrategy" if parallax else "SimplePxMmStrategy"},
    }


def goniometer_content(goniometer: Goniometer) -> Json:
    """Return a goniometer."""
    if len(goniometer.axes) == 1 and goniometer.angles[0] == 0.0:
        identity = np.eye(3).reshape(-1).tolist()
        return {"rotation_axis": list(goniometer.axes[0]), "fixed_rotation": identity, "setting_rotation": identity}
    return {
        "axes": [list(a) for a in goniometer.axes],
        "angles": list(goniometer.angles),
        "names": list(goniometer.names),
        "scan_axis": goniometer.scan_axis,
    }


def scan_content(scan: Scan) -> Json:
    """Return a scan."""
    n = scan.image_range[1] - scan.image_range[0] + 1
    return {
        "image_range": list(scan.image_range),
        "batch_offset": 0,
        "oscillation": list(scan.oscillation),
        "exposure_time": [scan.exposure_time] * n,
        "epochs": [0.0] * n,
        "valid_image_ranges": {},
    }


def crystal_content(crystal: Crystal) -> Json:
    """Return a crystal.

    Raises
    ------
    ConfigError
        If its space group is not known.
    """
    a, b, c = crystal.real_space.tolist()
    group = gemmi.find_spacegroup_by_name(crystal.space_group)
    if group is None:
        raise ConfigError(f"space group {crystal.space_group!r} is not known: write it as in 'P 43 21 2'")
    row: Json = {"__id__": "crystal", "real_space_a": a, "real_space_b": b, "real_space_c": c}
    row["space_group_hall_symbol"] = " " + group.hall.strip() if not group.hall.startswith("-") else group.hall
    row["ML_half_mosaicity_deg"] = crystal.half_mosaicity or None
    row["ML_domain_size_ang"] = crystal.domain_size or None
    return row
