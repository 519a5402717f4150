"""``xfelproc inspect``: what is in these files."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from xfelproc.errors import ConfigError, XfelprocError
from xfelproc.io.sources import SourceSettings, open_source
from xfelproc.io.sources.base import SourceSummary
from xfelproc.io.sources.files import expand_inputs
from xfelproc.io.sources.overrides import beam_center, detector_distance
from xfelproc.models.conventions import HC
from xfelproc.models.experiment import Beam, Detector, Experiment


def inspect(
    files: Annotated[list[str], typer.Argument(help="Files, patterns, folders, or @list.txt.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    geometry: Annotated[Path | None, typer.Option(help="Geometry to show the files with: .geom, .expt or NeXus.")] = None,
) -> None:
    """Show what is in files: format, frames, detector, beam, scan, mask, and what is missing or odd."""
    settings = SourceSettings(geometry=geometry)
    failed = 0
    shown: list[dict[str, Any]] = []
    console = Console()
    for path in expand_inputs(files):
        try:
            with open_source(path, settings) as source:
                summary = source.summary()
        except XfelprocError as error:
            failed = max(failed, error.exit_code)
            shown.append({"path": str(path), "error": str(error)})
            if not as_json:
                console.print(f"[red]error[/red] {escape(str(error))}", soft_wrap=True, highlight=False)
            continue
        shown.append(describe(summary))
        if not as_json:
            console.print(as_table(describe(summary)))
    if as_json:
        typer.echo(json.dumps(shown, indent=2, ensure_ascii=False))
    if failed:
        raise typer.Exit(failed)


def describe(summary: SourceSummary) -> dict[str, Any]:
    """Return what `inspect` shows of a source, as plain values (lengths in mm, Å; angles in degrees; None: not stated)."""
    experiment = summary.experiment
    return {
        "path": summary.path,
        "format": summary.format,
        "n_frames": summary.n_frames,
        "dtype": summary.dtype,
        "detector": _detector(experiment),
        "beam": _beam(experiment.beam),
        "goniometer": None if experiment.goniometer is None else asdict(experiment.goniometer),
        "scan": None if experiment.scan is None else asdict(experiment.scan),
        "mask": summary.mask,
        "notes": list(summary.notes),
    }


def _detector(experiment: Experiment) -> dict[str, Any]:
    detector, beam = experiment.detector, experiment.beam
    panel = detector.panels[0]
    distance = detector_distance(detector, beam)
    return {
        "panels": len(detector),
        "levels": _levels(detector),
        "image_size": panel.image_size,
        "pixel_size": panel.pixel_size,
        "distance": distance if abs(distance) > 1e-9 else None,
        "beam_center": _center(detector, beam) if abs(distance) > 1e-9 else None,
        "first_panel": {"origin": panel.origin, "fast_axis": panel.fast_axis, "slow_axis": panel.slow_axis},
        "trusted_range": [v if math.isfinite(v) else None for v in panel.trusted_range],
        "sensor": {"material": panel.material, "thickness": panel.thickness, "mu": panel.mu} if panel.thickness else None,
        "gain": panel.gain,
    }


def _center(detector: Detector, beam: Beam) -> tuple[float, float] | None:
    try:
        return beam_center(detector, beam)
    except ConfigError:
        return None


def _levels(detector: Detector) -> list[int]:
    """Return the number of groups or panels on each level of the hierarchy."""
    if detector.hierarchy is None:
        return [len(detector)]
    counts, level = [], [detector.hierarchy]
    while level:
        children = [child for group in level for child in group.children]
        counts.append(len(children))
        level = [child for child in children if not isinstance(child, int)]
    return counts


def _beam(beam: Beam) -> dict[str, Any]:
    known = beam.wavelength > 0
    return {
        "wavelength": beam.wavelength if known else None,
        "energy_ev": HC / beam.wavelength if known else None,
        "direction": beam.direction,
        "bandwidth": beam.bandwidth,
        "polarization_fraction": beam.polarization_fraction,
        "polarization_normal": beam.polarization_normal,
    }


def as_table(shown: dict[str, Any]) -> Table:
    """Return the values of `describe` as a table to read."""
    table = Table(title=escape(shown["path"]), title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows = [("format", shown["format"]), ("frames", f"{shown['n_frames']} of {shown['dtype']}")]
    for name, value in rows + _detector_rows(shown["detector"]) + _beam_rows(shown["beam"]) + _scan_rows(shown):
        table.add_row(name, escape(value))
    table.add_row("mask", escape(shown["mask"] or "none"))
    table.add_row("notes", escape("\n".join(shown["notes"]) or "none"))
    return table


def _vector(values: Any) -> str:
    return "(" + ", ".join(f"{v:.5g}" for v in values) + ")"


def _detector_rows(detector: dict[str, Any]) -> list[tuple[str, str]]:
    fast, slow = detector["image_size"]
    size = detector["pixel_size"]
    first = detector["first_panel"]
    levels = " > ".join(str(n) for n in detector["levels"])
    low, high = ("not stated" if v is None else f"{v:g}" for v in detector["trusted_range"])
    sensor = detector["sensor"]
    distance, center = detector["distance"], detector["beam_center"]
    rows = [("detector", f"{detector['panels']} panel(s) of {fast} x {slow} pixels, {size[0]:g} x {size[1]:g} mm")]
    if len(detector["levels"]) > 1:
        rows.append(("hierarchy", f"{levels} (groups a level, panels last)"))
    rows += [
        ("distance", "not stated" if distance is None else f"{distance:.3f} mm"),
        ("beam centre", "not stated" if center is None else f"{center[0]:.2f}, {center[1]:.2f} px (fast, slow) of the first panel"),
        ("first panel", f"origin {_vector(first['origin'])} fast {_vector(first['fast_axis'])} slow {_vector(first['slow_axis'])}"),
        ("sensor", _sensor(sensor)),
        ("trusted range", f"{low} to {high}, gain {detector['gain']:g} ADU/photon"),
    ]
    return rows


def _sensor(sensor: dict[str, Any] | None) -> str:
    if sensor is None:
        return "not stated"
    return f"{sensor['thickness']:g} mm {sensor['material'] or 'of unknown material'}, μ {sensor['mu']:.4g} /mm"


def _beam_rows(beam: dict[str, Any]) -> list[tuple[str, str]]:
    known = beam["wavelength"] is not None
    wavelength = f"{beam['wavelength']:.6g} Å ({beam['energy_ev']:.1f} eV)" if known else "not stated"
    if beam["bandwidth"]:
        wavelength += f", bandwidth {100 * beam['bandwidth']:g} %"
    return [
        ("wavelength", wavelength),
        ("source", f"towards {_vector(beam['direction'])}"),
        (
            "polarisation",
            f"fraction {beam['polarization_fraction']:g} in the plane normal to {_vector(beam['polarization_normal'])}",
        ),
    ]


def _scan_rows(shown: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    goniometer, scan = shown["goniometer"], shown["scan"]
    if goniometer is not None:
        axes = zip(goniometer["names"], goniometer["axes"], goniometer["angles"], strict=True)
        lines = [f"{name} {_vector(axis)} at {angle:g}°" for name, axis, angle in axes]
        if scan is not None:
            lines[goniometer["scan_axis"]] += ", scanned"
        rows.append(("goniometer", "\n".join([*lines, "(from the crystal outwards)"] if len(lines) > 1 else lines)))
    if scan is None:
        rows.append(("scan", "none: a still"))
    else:
        start, width = scan["oscillation"]
        first, last = scan["image_range"]
        exposure = f", {scan['exposure_time']:g} s a frame" if scan["exposure_time"] else ""
        rows.append(("scan", f"images {first} to {last}, {width:g}° each from {start:g}°{exposure}"))
    return rows
