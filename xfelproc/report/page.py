"""The report: one self-contained HTML file."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.models.conventions import FrameStatus
from xfelproc.models.experiment import Detector
from xfelproc.report import figures, images, metrology, words
from xfelproc.report.groups import groups_section
from xfelproc.report.intensities import intensities_section
from xfelproc.report.left_out import left_out_section
from xfelproc.report.merged import merged_section
from xfelproc.report.metrology import MetrologyData
from xfelproc.report.summary import RunSummary

STYLE = """
body{font-family:system-ui,sans-serif;color:#1f2937;margin:0 auto;max-width:1180px;padding:24px;line-height:1.45}
h1{font-size:26px;margin:0}h3{font-size:14px;font-weight:600;margin:12px 0 0;max-width:560px;overflow-wrap:anywhere}
h2{font-size:19px;margin:36px 0 8px;border-bottom:1px solid #e5e7eb;padding-bottom:4px}
.tiles{display:flex;flex-wrap:wrap;gap:12px;margin:18px 0}
.tile{border:1px solid #e5e7eb;border-radius:8px;padding:10px 16px;min-width:110px}
.tile b{display:block;font-size:22px}.tile span{color:#6b7280;font-size:12px}
table{border-collapse:collapse;font-size:13px;margin:8px 0}th,td{padding:4px 12px;text-align:right;border-bottom:1px solid #e5e7eb}
th{color:#6b7280;font-weight:600}.text{text-align:left}.note{color:#6b7280;font-size:13px}
.warn{background:#fef3c7;border-radius:6px;padding:8px 12px;margin:8px 0}
.pair{display:flex;flex-wrap:wrap;gap:8px}.pair>div{flex:1 1 500px;min-width:0}
"""


@dataclass(frozen=True)
class FrameView:
    """A frame to draw: pixels (panel, slow, fast), good pixels, spots and predictions as columns panel, fast, slow (n, 3)."""

    title: str
    detector: Detector
    pixels: NDArray[Any]
    good: NDArray[np.bool_]
    spots: NDArray[np.float64]
    predictions: NDArray[np.float64]


@dataclass(frozen=True)
class ReportData:
    """All that the report shows.

    ``shells`` has one mapping a resolution shell with the keys d_max, d_min, n_observations, n_unique, completeness, multiplicity,
    i_over_sigma, cc_half, cc_star, r_split; ``overall`` the same over all. ``clusters`` has a mapping a cluster of cells with
    count, cell, lattice. ``maximum`` and ``mean`` are images (panel, slow, fast), binned or not.
    """

    title: str
    summary: RunSummary
    target_cell: tuple[float, ...] | None
    cell_origin: str
    space_group: str
    clusters: Sequence[Mapping[str, Any]] = ()
    shells: Sequence[dict[str, Any]] = ()
    overall: Mapping[str, Any] = field(default_factory=dict)
    indexing: Mapping[str, Any] = field(default_factory=dict)
    """What became of an indexing ambiguity: ``settings`` of ``merge.json``."""
    quality: Mapping[str, Any] = field(default_factory=dict)
    """What merging says beside the shells: error model, normal probability, resolution."""
    intensities: Mapping[str, Any] = field(default_factory=dict)
    """What the merged intensities tell of the crystal: ``downstream`` of ``merge.json``."""
    table_one: Sequence[Mapping[str, str]] = ()
    lattices: Mapping[str, Any] = field(default_factory=dict)
    """What merging says of lattices that it left out: ``lattices`` of ``merge.json``."""
    groups: Sequence[Mapping[str, Any]] = ()
    differences: Sequence[Mapping[str, Any]] = ()
    """Groups of lattices that were merged apart, and the differences between them: as ``merge.json`` has them."""
    warnings: Sequence[str] = ()
    frames: Sequence[FrameView] = ()
    maximum: NDArray[np.float64] | None = None
    mean: NDArray[np.float64] | None = None
    image_note: str = ""
    left_out: Sequence[tuple[str, int, str]] = ()
    """Frames that were left out because workers died at them: file, frame, reason."""
    metrology: MetrologyData | None = None
    times: Mapping[str, float] = field(default_factory=dict)
    """Wall time in s of the parts of the run that are not a frame's: start-up, compilation, merging, ..."""


def build_report(data: ReportData) -> str:
    """Return the HTML of the report."""
    from plotly.offline import get_plotlyjs

    parts = [_head(data), _rates(data), _cells(data), _spots(data), _detector(data)]
    parts += [_metrology(data), _frames(data)]
    parts += [merged_section(data.shells, data.overall, data.quality, _plot), _indexing(data)]
    parts.append(left_out_section(data.quality.get("left_out", {}), data.lattices, _plot))
    parts += [groups_section(data.groups, data.differences, _plot)]
    parts += [intensities_section(data.intensities, data.table_one, _plot), _times(data)]
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(data.title)}</title>"
        f"<style>{STYLE}</style><script>{get_plotlyjs()}</script></head><body>{''.join(parts)}</body></html>"
    )


def _plot(figure: Any) -> str:
    text: str = figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False})
    return text


def _titled(title: str, figure: Any) -> str:
    """Return a plot under its title, which is no part of it: a long one would run under the plot's buttons."""
    return f"<div><h3>{html.escape(title)}</h3>{_plot(figure)}</div>"


def _tile(value: str, label: str) -> str:
    return f"<div class='tile'><b>{html.escape(value)}</b><span>{html.escape(label)}</span></div>"


def _head(data: ReportData) -> str:
    summary = data.summary
    total, hits, indexed = summary.n_frames, summary.n_hits, summary.n_indexed
    failed = summary.status.get(FrameStatus.FAILED.name, 0)
    tiles = [
        _tile(f"{total:,}", "frames"),
        _tile(f"{hits:,}", f"hits ({100 * hits / max(total, 1):.1f} % of frames)"),
        _tile(f"{indexed:,}", f"indexed ({100 * indexed / max(hits, 1):.1f} % of hits)"),
        _tile(f"{summary.n_lattices:,}", "lattices"),
        _tile(f"{summary.n_reflections:,}", "observations"),
        _tile(f"{failed:,}", "frames that failed"),
    ]
    if data.overall:
        tiles += [
            _tile(words.number(data.overall["cc_half"], 4), "CC1/2"),
            _tile(words.r_split(data.overall["r_split"], 2, " %"), "R_split"),
            _tile(words.number(100 * data.overall["completeness"], 1, " %"), "completeness"),
        ]
    warnings = "".join(f"<div class='warn'>{html.escape(text)}</div>" for text in data.warnings)
    return f"<h1>{html.escape(data.title)}</h1><div class='tiles'>{''.join(tiles)}</div>{warnings}"


def _rates(data: ReportData) -> str:
    text = "<h2>Hits and indexing along the run</h2>" + _plot(figures.rates(data.summary))
    if data.summary.reasons:
        text += (
            "<h2>Why frames did not come further</h2><p class='note'>Numbers are taken out so that equal causes count together; "
        )
        text += "point at a bar for an example.</p>" + _plot(figures.reasons(data.summary))
    if data.left_out:
        rows = "".join(
            f"<tr><td class='text'>{html.escape(path)}</td><td>{frame}</td><td class='text'>{html.escape(reason)}</td></tr>"
            for path, frame, reason in data.left_out
        )
        text += "<h2>Frames left out</h2><p class='note'>Workers died at them twice; all others are processed.</p>"
        text += f"<table><tr><th class='text'>file</th><th>frame</th><th class='text'>reason</th></tr>{rows}</table>"
    return text


def _cell_text(cell: Sequence[float]) -> str:
    return " ".join(f"{v:.2f}" for v in cell[:3]) + " Å &nbsp; " + " ".join(f"{v:.2f}" for v in cell[3:6]) + "°"


def _cells(data: ReportData) -> str:
    text = "<h2>Unit cells</h2>"
    if data.target_cell is not None:
        text += f"<p>{html.escape(data.cell_origin)}: <b>{_cell_text(data.target_cell)}</b>, {html.escape(data.space_group)}</p>"
    if data.clusters:
        rows = "".join(
            f"<tr><td>{c['count']}</td><td>{_cell_text(c['cell'])}</td><td>{html.escape(str(c['lattice']))}</td></tr>"
            for c in data.clusters
        )
        text += f"<table><tr><th>lattices</th><th>cell</th><th>lattice</th></tr>{rows}</table>"
    values = data.summary.cells
    if len(values) < data.summary.n_lattices:
        text += f"<p class='note'>Histograms of {len(values)} of {data.summary.n_lattices} lattices, drawn at random.</p>"
    return text + _plot(figures.cells(values, data.target_cell))


def _spots(data: ReportData) -> str:
    shown, readable = len(data.summary.n_spots), data.summary.n_readable
    note = f"<p class='note'>Histogram of {shown} of {readable} frames, drawn at random.</p>" if shown < readable else ""
    return f"<h2>Spots and residuals</h2>{note}" + _plot(figures.spots_and_rmsd(data.summary))


def _detector(data: ReportData) -> str:
    summary, detector = data.summary, data.summary.detector
    canvas = images.canvas_of(detector, 900)
    pictures = [("Spots of all frames (virtual powder pattern)", summary.spot_map)]
    if data.maximum is not None:
        pictures.append(("Maximum image", data.maximum))
    if data.mean is not None:
        pictures.append(("Mean image", data.mean))
    plots = []
    for title, stack in pictures:
        picture = images.assemble(detector, stack, None, canvas)
        percentile = 99.9 if stack is summary.spot_map else 99.5
        plots.append(_titled(title, figures.picture(images.png(picture, percentile), canvas.width, canvas.height)))
    plots.append(_titled(*_residual_figure(summary, canvas)))
    note = f"<p class='note'>{html.escape(data.image_note)}</p>" if data.image_note else ""
    return f"<h2>Detector</h2>{note}<div class='pair'>" + "".join(plots) + "</div>"


def _residual_figure(summary: RunSummary, canvas: images.Canvas) -> tuple[str, Any]:
    sums = summary.residual_sum
    panel, row, column = np.nonzero(sums[..., 0] >= 3)
    count = sums[panel, row, column, 0]
    mean = sums[panel, row, column, 1:3] / np.maximum(count, 1)[:, None]
    size = summary.detector.image_sizes[panel]
    centre = (np.column_stack([column, row]) + 0.5) / summary.cells_a_side * size
    detector = summary.detector
    at = canvas.place(detector, panel, centre[:, 0], centre[:, 1]) if len(panel) else np.empty((0, 2))
    step = centre + mean
    tip = canvas.place(detector, panel, step[:, 0], step[:, 1]) if len(panel) else np.empty((0, 2))
    px_a_px = float(np.median(detector.pixel_sizes)) / canvas.pixel
    longest = float(np.max(np.linalg.norm(mean, axis=1))) if len(panel) else 1.0
    scale = 0.05 * canvas.width / max(longest, 1e-6)
    blank = images.assemble(detector, np.zeros(summary.spot_map.shape), None, canvas)
    uri = images.png(blank)
    title = f"Mean residual, observed - predicted (longest arrow: {longest:.3f} px)"
    figure = figures.picture(uri, canvas.width, canvas.height)
    return title, figures.residual_arrows(figure, at, (tip - at) / max(px_a_px, 1e-9), scale)


def _metrology(data: ReportData) -> str:
    return metrology.section(data.metrology) if data.metrology is not None else ""


def _frames(data: ReportData) -> str:
    if not data.frames:
        return ""
    plots = []
    for view in data.frames:
        canvas = images.canvas_of(view.detector, 1400)
        picture = images.assemble(view.detector, view.pixels, view.good, canvas)
        figure = figures.picture(images.png(picture, 99.7), canvas.width, canvas.height)
        for rows, name, symbol, colour, size in (
            (view.predictions, "predicted", "square-open", figures.INDEXED, 9),
            (view.spots, "spots", "circle-open", "#dc2626", 7),
        ):
            if len(rows):
                at = canvas.place(view.detector, rows[:, 0], rows[:, 1], rows[:, 2])
                marker = {"symbol": symbol, "size": size, "color": colour, "line": {"width": 1}}
                figure.add_scattergl(x=at[:, 0], y=at[:, 1], mode="markers", name=name, marker=marker)
        plots.append(_titled(view.title, figure))
    return (
        "<h2>Frames</h2><p class='note'>Zoom by drawing a box; double click to zoom out.</p><div class='pair'>"
        + "".join(plots)
        + "</div>"
    )


def _indexing(data: ReportData) -> str:
    text = words.indexing(data.indexing)
    return f"<p>{html.escape(text)}</p>" if text else ""


def _times(data: ReportData) -> str:
    text = "<h2>Time</h2><p class='note'>Median CPU time a frame.</p>" + _plot(figures.times(data.summary))
    if data.times:
        rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{v:.2f} s</td></tr>" for k, v in data.times.items())
        text += f"<table><tr><th>part of the run</th><th>wall time</th></tr>{rows}</table>"
    return text
