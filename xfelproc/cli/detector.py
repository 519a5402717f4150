"""Commands detector-shifts and detector-statistics: tables and pictures of a detector's panels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from xfelproc.geometry.shifts import detector_shifts
from xfelproc.io.atomic import write_atomic
from xfelproc.models.tables import DetectorShiftTable, PanelStatisticsTable, Table
from xfelproc.report.metrology import page, section, shifts_page
from xfelproc.report.residuals import panel_statistics
from xfelproc.run.detector_tables import geometry_of, run_residuals


def show_shifts(first: Path, second: Path, level: int | None, as_json: bool, picture: Path | None) -> None:
    """Print the shifts between two geometries, and write the page if one is asked for."""
    a, b = geometry_of(first), geometry_of(second)
    shifts = detector_shifts(a.detector, b.detector, a.beam.direction)
    if level is not None:
        shifts = shifts.select(shifts["level"] == level)
    if picture is not None:
        title = f"{second.name or second} compared with {first.name or first}"
        write_atomic(picture, shifts_page(title, a.detector, b.detector, a.beam.direction).encode())
    if as_json:
        print(json.dumps(rows_of(shifts), indent=1))
        return
    for line in shift_lines(shifts):
        _say(line)
    if picture is not None:
        _say(f"wrote {picture}")


def show_statistics(folder: Path, as_json: bool, picture: Path | None, workers: int) -> None:
    """Print the statistics of each panel, before and after metrology where it ran."""
    data = run_residuals(folder, workers)
    tables = {"after" if data.before is not None else "panels": panel_statistics(data.detector, data.after)}
    if data.before is not None:
        tables = {"before": panel_statistics(data.recorded or data.detector, data.before)} | tables
    if picture is not None:
        text = section(data) or "<p>One panel: see the report of the run.</p>"
        write_atomic(picture, page(f"Panels of {folder.absolute().name}", text).encode())
    if as_json:
        print(json.dumps({name: rows_of(table) for name, table in tables.items()}, indent=1))
        return
    for name, table in tables.items():
        if len(tables) > 1:
            _say(f"{name} metrology")
        for line in statistics_lines(table):
            _say(line)
    if picture is not None:
        _say(f"wrote {picture}")


def _say(text: str) -> None:
    Console().print(text, soft_wrap=True, highlight=False, markup=False)


def rows_of(table: Table) -> list[dict[str, Any]]:
    """Return a table as plain rows; what is not known is None."""
    rows = []
    for row in range(len(table)):
        values = {c.name: np.asarray(table[c.name][row]).tolist() for c in table.SCHEMA}
        rows.append(
            {name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in values.items()}
        )
    return rows


def _table(heads: list[str], rows: list[list[str]], left: int) -> list[str]:
    """Return lines of columns as wide as they must be; the column ``left`` is aligned to the left."""
    widths = [max(len(row[k]) for row in [heads, *rows]) for k in range(len(heads))]
    return [
        "  ".join(v.ljust(w) if k == left else v.rjust(w) for k, (v, w) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in [heads, *rows]
    ]


def _number(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}" if np.isfinite(value) else "-"  # no -0.00


def shift_lines(shifts: DetectorShiftTable) -> list[str]:
    """Return the shifts as lines: µm and mrad."""
    names = ("fast", "slow", "normal", "rot.fast", "rot.slow", "rot.normal", "beam")
    text = []
    for prefix, title in (
        (
            "",
            "shifts in µm along the first geometry's fast and slow axes and normal, turns about them in mrad, shift along the beam",
        ),
        ("free_", "the same without the motion of the detector as a whole"),
    ):
        rows = []
        for row in range(len(shifts)):
            values = [
                *(1e3 * shifts[f"{prefix}shift"][row]),
                *(1e3 * np.radians(shifts[f"{prefix}rotation"][row])),
                1e3 * shifts[f"{prefix}distance"][row],
            ]
            named = [str(shifts["level"][row]), str(shifts["name"][row]), str(shifts["n_panels"][row])]
            rows.append([*named, *(_number(v, 2) for v in values)])
        text += [title, *_table(["level", "group", "panels", *names], rows, 1), ""]
        text += _spread(shifts, prefix)
    return text[:-1]


def _spread(shifts: DetectorShiftTable, prefix: str) -> list[str]:
    """Return a line a level: root mean square over its groups."""
    lines = []
    for level in np.unique(shifts["level"]):
        chosen = shifts.select(shifts["level"] == level)
        fast, slow, normal = np.sqrt(np.mean(chosen[f"{prefix}shift"] ** 2, axis=0)).tolist()
        turn = 1e3 * np.radians(float(np.sqrt(np.mean(chosen[f"{prefix}rotation"][:, 2] ** 2))))
        plane, along = 1e3 * np.hypot(fast, slow), 1e3 * normal
        lines.append(f"level {level} rms: in plane {plane:.2f} µm, normal {along:.2f} µm, turn about the normal {turn:.3f} mrad")
    return [*lines, ""]


def statistics_lines(table: PanelStatisticsTable) -> list[str]:
    """Return the statistics as lines: px and degrees."""
    columns = [c.name for c in PanelStatisticsTable.SCHEMA if c.dtype == "f8"]
    rows = []
    for row in range(len(table)):
        panel = int(table["panel"][row])
        named = [str(panel) if panel >= 0 else "", str(table["name"][row]), str(table["n_spots"][row])]
        rows.append([*named, *(_number(table[name][row], 4) for name in columns)])
    return _table(["panel", "name", "spots", *(name.replace("_", ".") for name in columns)], rows, 1)
