"""DIALS experiment lists (.expt, JSON): read and write.

Models are stored once each and referred to by index. A panel's and a group's frame is relative to the group it
hangs on; the root's is in the laboratory. ``beam.direction`` points to the source, lengths are in mm, angles in degrees.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.geometry.cells import rotation_matrix
from xfelproc.io.exchange.dials_write import write_expt
from xfelproc.models.experiment import (
    Beam,
    Crystal,
    Detector,
    DetectorGroup,
    Experiment,
    Goniometer,
    Panel,
    Scan,
    Vector3,
    as_matrix,
    as_vector,
)

__all__ = ["parse_expt", "read_expt", "write_expt"]

Json = dict[str, Any]
Frame3 = tuple[NDArray[np.float64], NDArray[np.float64]]

_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def read_expt(path: str | Path) -> list[Experiment]:
    """Read the experiments of a DIALS file (.expt or .json, plain or .gz, .bz2, .xz).

    Equal models are one object. Scan-varying models are read as their static form.

    Raises
    ------
    DataError
        If the file is missing, damaged, or no experiment list.
    """
    where = Path(path)
    try:
        with _OPENERS.get(where.suffix, open)(where, "rt", encoding="utf-8") as stream:
            content = json.load(stream)
    except FileNotFoundError as error:
        raise DataError("no such file: check the path", path) from error
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"cannot be read as JSON ({error}): the file is damaged or no DIALS experiment list", path) from error
    return parse_expt(content, str(path))


def parse_expt(content: Any, path: str = "") -> list[Experiment]:
    """Return the experiments of a parsed file."""
    if not isinstance(content, dict) or content.get("__id__") != "ExperimentList" or not content.get("experiment"):
        raise DataError("not a DIALS experiment list, or an empty one", path)
    try:
        beams = [_beam(d) for d in content.get("beam", [])]
        detectors = [_detector(d, path) for d in content.get("detector", [])]
        goniometers = [_goniometer(d) for d in content.get("goniometer", [])]
        scans = [_scan(d) for d in content.get("scan", [])]
        crystals = [_crystal(d) for d in content.get("crystal", [])]
        sets = content.get("imageset", [])
        experiments = []
        for item in content["experiment"]:
            scan = scans[item["scan"]] if item.get("scan") is not None else None
            experiments.append(
                Experiment(
                    beam=beams[item["beam"]],
                    detector=detectors[item["detector"]],
                    goniometer=goniometers[item["goniometer"]] if item.get("goniometer") is not None else None,
                    scan=scan,
                    crystal=crystals[item["crystal"]] if item.get("crystal") is not None else None,
                    identifier=str(item.get("identifier", "")),
                    image=_image(sets[item["imageset"]], scan) if item.get("imageset") is not None and sets else None,
                )
            )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"a model is missing or malformed ({type(error).__name__}: {error})", path) from error
    return experiments


def _image(item: Json, scan: Scan | None) -> tuple[str, int] | None:
    """Return the file (or template) and the index of the first image in it."""
    indices = item.get("single_file_indices") or [0]
    if item.get("images"):
        return (str(item["images"][0]), int(indices[0]))
    if item.get("template"):
        return (str(item["template"]), scan.image_range[0] - 1 if scan is not None else int(indices[0]))
    return None


def _beam(d: Json) -> Beam:
    direction = np.asarray(d.get("direction", (0.0, 0.0, 1.0)), dtype=np.float64)
    wavelength, bandwidth = d.get("wavelength"), 0.0
    if wavelength is None:
        # a polychromatic beam has limits
        low, high = (float(v) for v in d["wavelength_range"])
        wavelength, bandwidth = 0.5 * (low + high), 2.0 * (high - low) / (high + low)
    return Beam(
        wavelength=float(wavelength),
        direction=as_vector(direction / np.linalg.norm(direction)),
        polarization_normal=as_vector(d.get("polarization_normal", (0.0, 1.0, 0.0))),
        polarization_fraction=float(d.get("polarization_fraction", 0.999)),
        divergence=float(d.get("divergence", 0.0)),
        bandwidth=bandwidth,
        flux=float(d.get("flux", 0.0)),
    )


def _inner(d: Json, outer: Frame3) -> Frame3:
    """Return the laboratory frame of a panel or group that hangs on ``outer``: rotation (columns fast, slow, normal) and origin."""
    rotation, origin = outer
    fast, slow = np.asarray(d["fast_axis"], dtype=np.float64), np.asarray(d["slow_axis"], dtype=np.float64)
    local = np.column_stack([fast, slow, np.cross(fast, slow)])
    return rotation @ local, rotation @ np.asarray(d["origin"], dtype=np.float64) + origin


def _detector(d: Json, path: str) -> Detector:
    lab: Frame3 = (np.eye(3), np.zeros(3))
    outer: dict[int, Frame3] = {}

    def group(node: Json, above: Frame3) -> DetectorGroup:
        frame = _inner(node, above)
        children: list[DetectorGroup | int] = []
        for child in node.get("children", []):
            if "panel" in child:
                outer[int(child["panel"])] = frame
                children.append(int(child["panel"]))
            else:
                children.append(group(child, frame))
        name = str(node.get("name", ""))
        return DetectorGroup(name, tuple(children), as_vector(frame[0][:, 0]), as_vector(frame[0][:, 1]), as_vector(frame[1]))

    tree = group(d["hierarchy"], lab) if d.get("hierarchy") else None
    panels = tuple(_panel(p, outer.get(i, lab), path) for i, p in enumerate(d["panels"]))
    plain = tree is None or (tree.children == tuple(range(len(panels))) and tree == DetectorGroup(tree.name, tree.children))
    return Detector(panels, None if plain else tree)


def _panel(d: Json, outer: Frame3, path: str) -> Panel:
    rotation, origin = _inner(d, outer)
    strategy = d.get("px_mm_strategy", {})
    kind = strategy.get("type", "SimplePxMmStrategy")
    if kind not in ("SimplePxMmStrategy", "ParallaxCorrectedPxMmStrategy"):
        raise DataError(f"panel {d.get('name')!r}: the pixel to mm map {kind} is not supported", path)
    # older files keep μ and the thickness in the strategy
    thickness = float(d.get("thickness", 0.0)) or float(strategy.get("t0", 0.0))
    mu = float(d.get("mu", 0.0)) or float(strategy.get("mu", 0.0))
    low, high = (float(v) for v in d.get("trusted_range", (-np.inf, np.inf)))
    return Panel(
        name=str(d.get("name", "")),
        fast_axis=as_vector(rotation[:, 0]),
        slow_axis=as_vector(rotation[:, 1]),
        origin=as_vector(origin),
        pixel_size=(float(d["pixel_size"][0]), float(d["pixel_size"][1])),
        image_size=(int(d["image_size"][0]), int(d["image_size"][1])),
        # what `write_expt` puts for no limit
        trusted_range=(low if low > -1e30 else float("-inf"), high if high < 1e30 else float("inf")),
        thickness=thickness,
        material=str(d.get("material", "")),
        mu=mu if kind == "ParallaxCorrectedPxMmStrategy" else 0.0,
        gain=float(d.get("gain", 1.0)) or 1.0,
        pedestal=float(d.get("pedestal", 0.0)),
        raw_image_offset=(int(d.get("raw_image_offset", (0, 0))[0]), int(d.get("raw_image_offset", (0, 0))[1])),
        mask=tuple((int(a), int(b), int(c), int(e)) for a, b, c, e in d.get("mask", [])),
    )


def _rotation(values: Any, name: str) -> list[tuple[str, Vector3, float]]:
    """Return a fixed rotation as an axis and an angle in degrees; none for the identity."""
    matrix = np.asarray(values, dtype=np.float64).reshape(3, 3)
    vector = rotation_vector(matrix)
    angle = float(np.linalg.norm(vector))
    return [(name, as_vector(vector / angle), float(np.degrees(angle)))] if angle > 1e-12 else []


def rotation_vector(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rotation vector (radians), by the quaternion: exact near 0° and 180° too."""
    m = matrix
    k = np.array(
        [
            [m[0, 0] - m[1, 1] - m[2, 2], m[0, 1] + m[1, 0], m[0, 2] + m[2, 0], m[2, 1] - m[1, 2]],
            [m[0, 1] + m[1, 0], m[1, 1] - m[0, 0] - m[2, 2], m[1, 2] + m[2, 1], m[0, 2] - m[2, 0]],
            [m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], m[2, 2] - m[0, 0] - m[1, 1], m[1, 0] - m[0, 1]],
            [m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], m[0, 0] + m[1, 1] + m[2, 2]],
        ]
    )
    q = np.linalg.eigh(k / 3.0)[1][:, -1]
    q = -q if q[3] < 0 else q
    sine = float(np.linalg.norm(q[:3]))
    if sine < 1e-15:
        return np.zeros(3)
    vector: NDArray[np.float64] = q[:3] / sine * 2.0 * np.arctan2(sine, q[3])
    return vector


def _goniometer(d: Json) -> Goniometer:
    if d.get("axes"):
        axes = tuple(as_vector(np.asarray(a) / np.linalg.norm(a)) for a in d["axes"])
        names = tuple(str(n) for n in d.get("names", [f"axis{i}" for i in range(len(axes))]))
        return Goniometer(axes, tuple(float(a) for a in d["angles"]), names, int(d["scan_axis"]))
    identity = np.eye(3)
    inner = _rotation(d.get("fixed_rotation", identity), "fixed")
    outer = _rotation(d.get("setting_rotation", identity), "setting")
    axis = np.asarray(d["rotation_axis"], dtype=np.float64)
    chain = [*inner, ("omega", as_vector(axis / np.linalg.norm(axis)), 0.0), *outer]
    return Goniometer(tuple(v for _, v, _ in chain), tuple(a for _, _, a in chain), tuple(n for n, _, _ in chain), len(inner))


def _scan(d: Json) -> Scan | None:
    """Return the scan; None for one of no width, which is a still."""
    properties = d.get("properties", d)
    first, last = (int(v) for v in d["image_range"])
    if "properties" in d:
        angles = [float(v) for v in properties.get("oscillation", [])]
        widths = [float(v) for v in properties.get("oscillation_width", [])]
        if not angles:
            return None
        width = widths[0] if widths else (angles[1] - angles[0] if len(angles) > 1 else 0.0)
        start = angles[0]
    else:
        start, width = (float(v) for v in d["oscillation"])
    if width == 0.0:
        return None
    exposure = properties.get("exposure_time") or [0.0]
    return Scan((start, width), (first, last), float(exposure[0]) if isinstance(exposure, Sequence) else float(exposure))


def _crystal(d: Json) -> Crystal:
    rows = np.array([d["real_space_a"], d["real_space_b"], d["real_space_c"]], dtype=np.float64)
    hall = str(d.get("space_group_hall_symbol", "P 1"))
    group = gemmi.find_spacegroup_by_ops(gemmi.symops_from_hall(hall))
    return Crystal(
        A=as_matrix(np.linalg.inv(rows)),
        space_group=group.xhm() if group is not None else "P 1",
        domain_size=float(d.get("ML_domain_size_ang") or 0.0),
        half_mosaicity=float(d.get("ML_half_mosaicity_deg") or 0.0),
    )


def goniometer_rotation(goniometer: Goniometer, angle: float = 0.0) -> NDArray[np.float64]:
    """Return the rotation (3, 3) of the sample with the scan axis at ``angle`` degrees, all other axes at their own."""
    total = np.eye(3)
    for i, (axis, own) in enumerate(zip(goniometer.axes, goniometer.angles, strict=True)):
        value = angle if i == goniometer.scan_axis else own
        total = rotation_matrix(np.radians(value) * np.asarray(axis)) @ total
    return total
