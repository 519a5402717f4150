"""Full imgCIF headers: tables of axes, arrays, beam and scan to models.

The laboratory frame of imgCIF is ours: x along the principal rotation axis, z to the source, so that the beam travels along -z.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np

from xfelproc.errors import DataError
from xfelproc.geometry.cells import rotation_matrix
from xfelproc.io.sources.imgcif_axes import Axis, AxisTree, Step, hierarchy, place_panel
from xfelproc.models.experiment import Beam, Detector, Goniometer, Panel, Scan, as_vector

Row = Mapping[str, str]


@dataclass(frozen=True)
class ArrayUse:
    """An array of a frame: its id, the id of the binary section that holds it (0: not stated), and its place among the frame's."""

    array_id: str
    binary_id: int


@dataclass(frozen=True)
class Section:
    """A rectangle of one array that is a panel: first element (fast, slow) in the array's rows laid one below another, and size."""

    array_id: str
    name: str
    offset: tuple[int, int]
    size: tuple[int, int]
    axis_sets: tuple[str, str]
    reversed: tuple[bool, bool]


def rows(block: gemmi.cif.Block, category: str) -> list[Row]:
    """Return the rows of a category as mappings from item to value; absent and unknown values are empty strings."""
    table = block.find_mmcif_category(f"_{category}.")
    if len(table) == 0:
        return []
    names = [tag.rpartition(".")[2].lower() for tag in table.tags]
    return [dict(zip(names, (_text(value) for value in row), strict=True)) for row in table]


def _text(value: str) -> str:
    return "" if gemmi.cif.is_null(value) else gemmi.cif.as_string(value).strip()


def number(row: Row, name: str, default: float = 0.0) -> float:
    """Return the value of an item as a number; a standard uncertainty in brackets is left out."""
    text = row.get(name, "")
    if not text:
        return default
    try:
        return float(text)
    except ValueError:
        found = re.fullmatch(r"(.*)\(\d+\)", text)
        return number({name: found[1]}, name, default) if found else default


def has_geometry(block: gemmi.cif.Block) -> bool:
    """Return whether the block has the tables that place the pixels in space."""
    return all(len(block.find_mmcif_category(f"_{c}.")) for c in ("axis", "array_structure_list", "array_structure_list_axis"))


def read_axes(block: gemmi.cif.Block, frame_id: str, path: Path) -> AxisTree:
    """Return the axes at the settings of a frame (else at the start of the scan)."""
    settings: dict[str, tuple[float, float]] = {}
    for row in rows(block, "diffrn_scan_axis"):
        settings[row.get("axis_id", "")] = (number(row, "angle_start"), number(row, "displacement_start"))
    for row in rows(block, "diffrn_scan_frame_axis"):
        if row.get("frame_id", frame_id) in ("", frame_id) and (row.get("angle") or row.get("displacement")):
            settings[row.get("axis_id", "")] = (number(row, "angle"), number(row, "displacement"))
    axes = []
    for row in rows(block, "axis"):
        vector = np.array([number(row, f"vector[{i}]") for i in (1, 2, 3)])
        length = float(np.linalg.norm(vector))
        name = row.get("id", "")
        angle, displacement = settings.get(name, (0.0, 0.0))
        kind = row.get("type", "").lower()
        if length == 0 and kind in ("rotation", "translation"):
            raise DataError(f"axis {name!r} has no direction: give a geometry file instead", path)
        offset = as_vector([number(row, f"offset[{i}]") for i in (1, 2, 3)])
        unit = as_vector(vector / length) if length else (0.0, 0.0, 0.0)
        if number(row, "rotation") != 0:
            raise DataError(f"axis {name!r} has a fixed rotation, which is not read: give a geometry file instead", path)
        equipment = row.get("equipment", "").lower()
        axes.append(Axis(name, kind, equipment, row.get("depends_on", ""), unit, offset, angle, displacement))
    return AxisTree(axes, path)


def frames(block: gemmi.cif.Block) -> dict[str, tuple[ArrayUse, ...]]:
    """Return the arrays of each frame, in the order of the file."""
    found: dict[str, list[ArrayUse]] = {}
    for row in rows(block, "diffrn_data_frame") or rows(block, "diffrn_frame_data"):
        frame = row.get("id", "") or row.get("frame_id", "")
        found.setdefault(frame, []).append(ArrayUse(row.get("array_id", ""), int(number(row, "binary_id"))))
    if not found:
        ids = dict.fromkeys(row.get("array_id", "") for row in rows(block, "array_structure_list"))
        found[""] = [ArrayUse(array_id, 0) for array_id in ids]
    return {frame: tuple(uses) for frame, uses in found.items()}


def panel_sections(block: gemmi.cif.Block, array_ids: tuple[str, ...], path: Path) -> tuple[Section, ...]:
    """Return the panels that the arrays are divided into, array by array in the order of the tables.

    Raises
    ------
    DataError
        If an array has no description, or more than two indices move along axes.
    """
    bounds: dict[tuple[str, str, int], tuple[int, int]] = {}
    for row in rows(block, "array_structure_list_section"):
        key = (row.get("array_id", ""), row.get("id", ""), int(number(row, "index")))
        bounds[key] = (int(number(row, "start", 1)), int(number(row, "end", 1)))
    listed: dict[tuple[str, str], list[Row]] = {}
    dimensions: dict[str, dict[int, int]] = {}
    for row in rows(block, "array_structure_list"):
        array_id, section = row.get("array_id", ""), row.get("array_section_id", "")
        if section in ("", array_id):
            dimensions.setdefault(array_id, {})[int(number(row, "precedence", 1))] = int(number(row, "dimension"))
        if row.get("axis_set_id"):
            listed.setdefault((array_id, section), []).append(row)
    found = []
    first_row = 0
    for array_id in array_ids:
        sizes = dimensions.get(array_id, {})
        if 1 not in sizes or 2 not in sizes:
            raise DataError(f"the dimensions of array {array_id!r} are not stated: give a geometry file instead", path)
        for (owner, section), items in listed.items():
            if owner == array_id:
                found.append(_section(array_id, section, items, sizes, bounds, first_row, path))
        first_row += sizes[2] * sizes.get(3, 1)
    return tuple(found)


def _section(
    array_id: str,
    section: str,
    items: list[Row],
    sizes: Mapping[int, int],
    bounds: Mapping[tuple[str, str, int], tuple[int, int]],
    first_row: int,
    path: Path,
) -> Section:
    ordered = sorted(items, key=lambda row: number(row, "precedence", 1))
    if len(ordered) != 2:
        raise DataError(f"panel {section or array_id!r} moves along {len(ordered)} axes, not 2: give a geometry file instead", path)
    fast, slow = ordered
    start_fast = bounds.get((array_id, section, int(number(fast, "index"))), (1, 0))[0] - 1
    start_slow = bounds.get((array_id, section, int(number(slow, "index"))), (1, 0))[0] - 1
    plane = bounds.get((array_id, section, 3), (1, 1))[0] - 1
    decreasing = tuple(row.get("direction", "increasing").lower() == "decreasing" for row in ordered)
    return Section(
        array_id,
        section or array_id,
        (start_fast, first_row + plane * sizes[2] + start_slow),
        (int(number(fast, "dimension")), int(number(slow, "dimension"))),
        (fast["axis_set_id"], slow["axis_set_id"]),
        (decreasing[0], decreasing[1]),
    )


def _steps(block: gemmi.cif.Block) -> dict[str, tuple[Step, ...]]:
    found: dict[str, list[Step]] = {}
    for row in rows(block, "array_structure_list_axis"):
        step = Step(row.get("axis_id", ""), number(row, "displacement"), number(row, "displacement_increment"))
        found.setdefault(row.get("axis_set_id", "") or step.axis, []).append(step)
    return {name: tuple(steps) for name, steps in found.items()}


def read_detector(block: gemmi.cif.Block, tree: AxisTree, array_ids: tuple[str, ...], path: Path) -> Detector:
    """Return the panels of a frame's arrays, where the tables put them.

    The displacement of an axis set is taken as that of the outer edge of the first pixel, as writers use it.
    """
    steps = _steps(block)
    ranges = {row.get("array_id", ""): _trusted(row) for row in rows(block, "array_intensities")}
    gains = {row.get("array_id", ""): number(row, "gain", 1.0) for row in rows(block, "array_intensities")}
    panels, mounts = [], []
    for section in panel_sections(block, array_ids, path):
        sets = []
        for name, size, backwards in zip(section.axis_sets, section.size, section.reversed, strict=True):
            if name not in steps:
                raise DataError(f"axis set {name!r} is used but not defined: give a geometry file instead", path)
            sets.append(tuple(_reverse(s, size) for s in steps[name]) if backwards else steps[name])
        frame = place_panel(tree, sets[0], sets[1])
        mounts.append(frame.mount)
        panels.append(
            Panel(
                section.name,
                frame.fast_axis,
                frame.slow_axis,
                frame.origin,
                frame.pixel_size,
                section.size,
                trusted_range=ranges.get(section.array_id, (float("-inf"), float("inf"))),
                gain=gains.get(section.array_id, 1.0) or 1.0,
                raw_image_offset=section.offset,
            )
        )
    if not panels:
        raise DataError("the header describes no panel: give a geometry file instead", path)
    return Detector(tuple(panels), hierarchy(tree, tuple(mounts)))


def _reverse(step: Step, size: int) -> Step:
    return Step(step.axis, step.displacement + size * step.increment, -step.increment)


def _trusted(row: Row) -> tuple[float, float]:
    """Return the trusted range: above the value that marks undefined pixels, up to the overload."""
    low = number(row, "undefined_value") + 1 if row.get("undefined_value") else float("-inf")
    high = number(row, "overload") if row.get("overload") else float("inf")
    return (low, high)


def read_beam(block: gemmi.cif.Block, tree: AxisTree) -> tuple[Beam, list[str]]:
    """Return the beam (wavelength 0 if not stated), and notes.

    ``polarizn_source_ratio`` is (Ip - In) / (Ip + In), so that the fraction in the plane is (1 + ratio) / 2, and
    ``polarizn_source_norm`` is the angle between its normal and the laboratory's y (imgCIF dictionary, DIFFRN_RADIATION).
    """
    radiation = next(iter(rows(block, "diffrn_radiation")), {})
    table = rows(block, "diffrn_radiation_wavelength")
    chosen = [row for row in table if row.get("id") == radiation.get("wavelength_id")] or table
    wavelength = number(chosen[0], "wavelength") if chosen else 0.0
    source = next((a for a in tree.axes.values() if a.equipment == "source" and any(a.vector)), None)
    direction = source.vector if source else (0.0, 0.0, 1.0)
    notes = []
    fraction, normal = 0.999, np.array([0.0, 1.0, 0.0])
    if radiation.get("polarizn_source_ratio"):
        fraction = (1.0 + number(radiation, "polarizn_source_ratio")) / 2.0
        angle = number(radiation, "polarizn_source_norm")
        normal = rotation_matrix(np.radians(angle) * np.asarray(direction)) @ normal
        notes.append(
            f"polarisation: polarizn_source_ratio {radiation['polarizn_source_ratio']}, that is a fraction of {fraction:g}"
        )
    else:
        notes.append("polarisation not stated: fraction 0.999 in the horizontal plane assumed")
    return Beam(wavelength, as_vector(direction), as_vector(normal), fraction), notes


def read_goniometer(block: gemmi.cif.Block, tree: AxisTree) -> tuple[Goniometer | None, float]:
    """Return the goniometer (None if there is no rotation), and the width of a frame in degrees about its scan axis."""
    axes = [a.name for a in tree.axes.values() if a.equipment == "goniometer" and a.kind == "rotation"]
    if not axes:
        return None, 0.0
    chains = [tuple(n for n in tree.chain(name) if n in axes) for name in axes]
    names = max(chains, key=len)
    widths = dict.fromkeys(names, 0.0)
    for row in rows(block, "diffrn_scan_axis"):
        if row.get("axis_id") in widths:
            width = number(row, "angle_increment") or number(row, "angle_range")
            widths[row["axis_id"]] = width
    moving = [i for i, name in enumerate(names) if widths[name]]
    scan_axis = moving[0] if moving else len(names) - 1
    goniometer = Goniometer(tuple(tree[n].vector for n in names), tuple(tree[n].angle for n in names), tuple(names), scan_axis)
    return goniometer, widths[names[scan_axis]]


def read_scan(block: gemmi.cif.Block, goniometer: Goniometer | None, width: float, frame_number: int) -> Scan | None:
    """Return the scan of one frame (its ``frame_number`` in the sweep), or None for a still."""
    if goniometer is None or width == 0:
        return None
    row = next(iter(rows(block, "diffrn_scan_frame")), {})
    start = goniometer.angles[goniometer.scan_axis]
    exposure = number(row, "exposure_time") or number(row, "integration_time")
    return Scan((start, width), (frame_number, frame_number), exposure)


def detector_type(block: gemmi.cif.Block) -> str:
    """Return what the file calls its detector; empty if it does not."""
    row = next(iter(rows(block, "diffrn_detector")), {})
    return row.get("type", "") or row.get("details", "") or row.get("id", "")
