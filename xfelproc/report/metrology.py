"""Section metrology of the report, and the same as pages of their own."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.metrology.state import LevelOutcome
from xfelproc.geometry.hierarchy import MOVES
from xfelproc.geometry.shifts import detector_shifts
from xfelproc.models.experiment import Detector, Vector3
from xfelproc.models.tables import DetectorShiftTable, PanelStatisticsTable
from xfelproc.report import detector_figures as figures
from xfelproc.report.residuals import panel_statistics

Floats = NDArray[np.float64]
AXES = ("fast", "slow", "normal")


@dataclass(frozen=True)
class MetrologyData:
    """What is shown of a detector's panels.

    ``after`` are sums of residuals (panel, slow, fast, 11) with ``detector``; ``before`` the same with ``recorded``, where the
    geometry was refined. ``parameters`` have level, group, parameter, unit, value, sigma (and n_spots); ``halves`` level, group,
    parameter, difference, sigma; ``notes`` is what there is to say.
    """

    detector: Detector
    after: Floats
    direction: Vector3 = (0.0, 0.0, 1.0)
    recorded: Detector | None = None
    before: Floats | None = None
    parameters: Sequence[Mapping[str, Any]] = ()
    halves: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()


def outcome_rows(outcomes: Iterable[LevelOutcome]) -> dict[str, list[dict[str, Any]]]:
    """Return ``parameters`` and ``halves`` of refined levels as plain values: mm and mrad. Tied groups have none of their own."""
    parameters: list[dict[str, Any]] = []
    halves: list[dict[str, Any]] = []
    for outcome in outcomes:
        for group in np.flatnonzero(~outcome.tied).tolist():
            for number, name in enumerate(MOVES):
                unit, scale = ("mm", 1.0) if number < 3 else ("mrad", 1e3)
                where = {"level": outcome.level, "group": outcome.names[group], "parameter": name, "unit": unit}
                value, sigma = (scale * float(values[group, number]) for values in (outcome.moves, outcome.sigma))
                if sigma > 0:  # what is fixed has none
                    parameters.append({**where, "value": value, "sigma": sigma, "n_spots": int(outcome.n_spots[group])})
                difference, sigma = (scale * float(v[group, number]) for v in (outcome.half_difference, outcome.half_sigma))
                if sigma > 0:
                    halves.append({**where, "difference": difference, "sigma": sigma})
    return {"parameters": parameters, "halves": halves}


def section(data: MetrologyData) -> str:
    """Return the section; nothing where there is one panel and no metrology."""
    if len(data.detector) == 1 and data.recorded is None:
        return ""
    after = panel_statistics(data.detector, data.after)
    before = None if data.before is None else panel_statistics(data.recorded or data.detector, data.before)
    title = "Detector metrology" if data.recorded is not None else "Residuals by panel"
    notes = "".join(f"<p class='note'>{html.escape(text)}</p>" for text in data.notes)
    text = f"<h2 id='metrology'>{title}</h2>{notes}{_overall(before, after)}<div class='pair'>"
    text += _fields(data)
    if data.recorded is not None:
        figure, longest = figures.shift_field(data.recorded, data.detector)
        text += _titled(f"Panels moved, without the motion of the whole (longest arrow: {1e3 * longest:.1f} µm)", figure)
    text += "</div>" + _titled("RMSD of the panels (dotted: of all spots)", figures.panel_bars(after, before))
    if data.halves:
        text += _titled(
            "Half-sets of the shots, refined apart: is the stated precision true?", figures.halves([*map(dict, data.halves)])
        )
    if data.recorded is not None:
        shifts = detector_shifts(data.recorded, data.detector, data.direction)
        text += _folded("Shifts by level", shift_table(shifts))
    if data.parameters:
        text += _folded("Refined parameters with their uncertainties", _parameters(data.parameters))
    return text + _folded("Residuals by panel", statistics_table(after, before))


def _fields(data: MetrologyData) -> str:
    parts = [(data.detector, data.after)]
    names = [""]
    if data.before is not None:
        parts.insert(0, (data.recorded or data.detector, data.before))
        names = [", before", ", after"]
    titles = [f"Mean residual{name}: observed - predicted" for name in names]
    found = zip(titles, *figures.residual_fields(parts), strict=True)
    return "".join(_titled(f"{title} (longest arrow: {longest:.3f} px)", figure) for title, figure, longest in found)


def _overall(before: PanelStatisticsTable | None, after: PanelStatisticsTable) -> str:
    columns = ("rmsd_fast", "rmsd_slow", "rmsd_radial", "rmsd_transverse", "rmsd_psi")
    heads = "".join(f"<th>{name}</th>" for name in ("fast, px", "slow, px", "radial, px", "transverse, px", "ΔΨ, °"))
    rows = ""
    for name, table in (("before", before), ("after" if before is not None else "all panels", after)):
        if table is not None:
            cells = "".join(f"<td>{_number(table[c][-1], 4)}</td>" for c in columns)
            rows += f"<tr><td class='text'>{name}</td><td>{int(table['n_spots'][-1]):,}</td>{cells}</tr>"
    return f"<table><tr><th class='text'>RMSD</th><th>spots</th>{heads}</tr>{rows}</table>"


def shift_table(shifts: DetectorShiftTable) -> str:
    """Return the shifts as a table of HTML, µm and mrad."""
    heads = (
        "".join(f"<th>{kind} {axis}</th>" for kind in ("shift, µm,", "turn, mrad,") for axis in AXES)
        + "<th>along the beam, µm</th>"
    )
    text = f"<table><tr><th>level</th><th class='text'>group</th>{heads}{heads.replace('<th>', '<th>free ')}</tr>"
    for row in range(len(shifts)):
        cells = f"<td>{shifts['level'][row]}</td><td class='text'>{html.escape(str(shifts['name'][row]))}</td>"
        for prefix in ("", "free_"):
            values = [
                *(1e3 * shifts[f"{prefix}shift"][row]),
                *(1e3 * np.radians(shifts[f"{prefix}rotation"][row])),
                1e3 * shifts[f"{prefix}distance"][row],
            ]
            cells += "".join(f"<td>{_number(v, 2)}</td>" for v in values)
        text += f"<tr>{cells}</tr>"
    return text + "</table><p class='note'>free: without the motion of the detector as a whole</p>"


def statistics_table(after: PanelStatisticsTable, before: PanelStatisticsTable | None = None) -> str:
    """Return the statistics of the panels as a table of HTML."""
    columns = [c for c in PanelStatisticsTable.SCHEMA if c.dtype == "f8"]
    heads = "".join(f"<th>{c.name.replace('_', ' ')}, {c.unit.replace('degree', '°')}</th>" for c in columns)
    text = f"<table><tr><th>panel</th><th class='text'>name</th><th></th><th>spots</th>{heads}</tr>"
    for row in range(len(after)):
        for name, table in (("before", before), ("after" if before is not None else "", after)):
            if table is not None:
                panel = "" if table["panel"][row] < 0 else str(table["panel"][row])
                cells = f"<td>{panel}</td><td class='text'>{html.escape(str(table['name'][row]))}</td><td>{name}</td>"
                cells += f"<td>{int(table['n_spots'][row]):,}</td>"
                cells += "".join(f"<td>{_number(table[c.name][row], 4)}</td>" for c in columns)
                text += f"<tr>{cells}</tr>"
    return text + "</table>"


def _parameters(rows: Sequence[Mapping[str, Any]]) -> str:
    heads = "<th>level</th><th class='text'>group</th><th class='text'>parameter</th><th>value</th><th>σ</th><th>unit</th>"
    text = f"<table><tr>{heads}</tr>"
    for row in rows:
        names = "".join(f"<td class='text'>{html.escape(str(row[name]))}</td>" for name in ("group", "parameter"))
        value, sigma = float(row["value"]), float(row["sigma"])
        unit = html.escape(str(row["unit"]))
        text += f"<tr><td>{row['level']}</td>{names}<td>{value:.5g}</td><td>{sigma:.2g}</td><td>{unit}</td></tr>"
    return text + "</table>"


def _number(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:,.{digits}f}" if np.isfinite(value) else "–"  # no -0.00


def _titled(title: str, figure: Any) -> str:
    plot = figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False})
    return f"<div><h3 style='max-width:none'>{html.escape(title)}</h3>{plot}</div>"


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary><div style='overflow-x:auto'>{content}</div></details>"


def page(title: str, content: str) -> str:
    """Return a page of its own."""
    from plotly.offline import get_plotlyjs

    from xfelproc.report.page import STYLE

    head = f"<meta charset='utf-8'><title>{html.escape(title)}</title><style>{STYLE}</style><script>{get_plotlyjs()}</script>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body><h1>{html.escape(title)}</h1>{content}</body></html>"


def shifts_page(title: str, first: Detector, second: Detector, direction: Vector3) -> str:
    """Return a page with the shifts between two geometries: picture and table."""
    figure, longest = figures.shift_field(first, second)
    text = _titled(f"Panels moved, without the motion of the whole (longest arrow: {1e3 * longest:.1f} µm)", figure)
    table = shift_table(detector_shifts(first, second, direction))
    return page(title, text + f"<div style='overflow-x:auto'>{table}</div>")
