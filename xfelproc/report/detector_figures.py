"""Plotly figures of a detector's panels: where they are, how they moved, what is left over on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from xfelproc.geometry.detector import mm_to_lab
from xfelproc.geometry.motion import corners
from xfelproc.geometry.shifts import displaced
from xfelproc.models.experiment import Detector
from xfelproc.models.tables import PanelStatisticsTable
from xfelproc.report.figures import HIT, INDEXED, SOFT, styled

Floats = NDArray[np.float64]
WIDTH = 500
"""Width of a picture of the detector, px."""
ARROW = 0.07
"""Length of the longest arrow, of the detector's longer side."""
SCALE = "RdBu_r"
FEW, FEW_ON_PANEL = 3, 10
"""Spots of a cell whose mean residual is drawn, and of a panel that is coloured."""


def layout(
    detector: Detector, values: Floats | None = None, unit: str = "", texts: Sequence[str] = (), least: float = 1e-9
) -> go.Figure:
    """Return the outlines of panels as seen from the source, mm, coloured by a value each (NaN: none), ``texts`` to point at.

    Colours go to the largest value, or to ``least`` if that is more.
    """
    figure = go.Figure()
    outline = corners(detector, range(len(detector))).reshape(-1, 4, 3)[:, [0, 1, 3, 2, 0], :2]
    finite = np.zeros(0) if values is None else values[np.isfinite(values)]
    limit = max(float(np.abs(finite).max(initial=0.0)), least)
    for number, points in enumerate(outline):
        value = np.nan if values is None else values[number]
        colour = "#f1f5f9" if not np.isfinite(value) else sample_colorscale(SCALE, [0.5 + 0.5 * float(value) / limit])[0]
        text = texts[number] if texts else detector.panels[number].name
        figure.add_scatter(
            x=points[:, 0],
            y=points[:, 1],
            mode="lines",
            fill="toself",
            fillcolor=colour,
            line={"color": SOFT, "width": 1},
            text=text,
            hoverinfo="text",
            hoveron="fills",
            showlegend=False,
        )
    if len(finite):
        bar = {"colorscale": SCALE, "cmin": -limit, "cmax": limit, "color": [0.0], "showscale": True, "size": 0.01}
        bar["colorbar"] = {"title": {"text": unit, "side": "right"}, "thickness": 12, "len": 0.8}
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=bar, showlegend=False, hoverinfo="skip")
    figure.add_scatter(
        x=[0],
        y=[0],
        mode="markers",
        marker={"symbol": "cross-thin", "size": 12, "line": {"width": 2}},
        showlegend=False,
        hovertext="beam",
    )
    styled(figure, WIDTH)
    figure.update_layout(width=WIDTH + 60 * bool(len(finite)), margin={"l": 50, "r": 10, "t": 10, "b": 45})
    figure.update_xaxes(title="x, mm", showgrid=False, zeroline=False)
    figure.update_yaxes(title="y, mm", showgrid=False, zeroline=False, scaleanchor="x", scaleratio=1)
    return figure


def arrows(figure: go.Figure, at: Floats, step: Floats, scale: float) -> go.Figure:
    """Draw arrows ``scale * step`` (n, 2) at places (n, 2), with a head each."""
    tip = at + scale * step
    back = at - tip
    turn = 0.38
    heads = []
    for sign in (1.0, -1.0):
        c, s = np.cos(turn), sign * np.sin(turn)
        heads.append(tip + 0.35 * np.column_stack([c * back[:, 0] - s * back[:, 1], s * back[:, 0] + c * back[:, 1]]))
    nothing = np.full_like(at, np.nan)
    points = np.stack([at, tip, heads[0], tip, heads[1], nothing], axis=1).reshape(-1, 2)
    figure.add_scatter(
        x=points[:, 0], y=points[:, 1], mode="lines", line={"color": "#111827", "width": 1.4}, showlegend=False, hoverinfo="skip"
    )
    return figure


@dataclass(frozen=True)
class ResidualMeans:
    """Mean residuals of cells: places and tips on the detector (n, 2) mm, lengths in px; of panels: away from the beam, px."""

    at: Floats
    tip: Floats
    lengths: Floats
    away: Floats

    @classmethod
    def of(cls, detector: Detector, sums: Floats) -> ResidualMeans:
        """Return them of sums (panel, slow, fast, 11)."""
        panel, row, column = np.nonzero(sums[..., 0] >= FEW)
        mean = sums[panel, row, column, 1:3] / np.maximum(sums[panel, row, column, :1], 1.0)
        centre = (np.column_stack([column, row]) + 0.5) / sums.shape[1] * detector.image_sizes[panel]
        size = detector.pixel_sizes[panel]
        at, tip = (mm_to_lab(detector, panel, where * size)[:, :2].reshape(-1, 2) for where in (centre, centre + mean))
        by_panel = sums.sum(axis=(1, 2))
        with np.errstate(invalid="ignore", divide="ignore"):
            away = np.where(by_panel[:, 0] >= FEW_ON_PANEL, by_panel[:, 5] / by_panel[:, 0], np.nan)
        return cls(at, tip, np.linalg.norm(mean, axis=1), away)

    @property
    def longest(self) -> float:
        """Length of the longest arrow, px."""
        return float(self.lengths.max(initial=0.0))

    @property
    def farthest(self) -> float:
        """Largest mean of a panel away from the beam, px."""
        return float(np.abs(self.away[np.isfinite(self.away)]).max(initial=0.0))


def residual_fields(parts: Sequence[tuple[Detector, Floats]]) -> tuple[list[go.Figure], list[float]]:
    """Return mean residuals of the cells of each panel as arrows, all on one scale, and the length of the longest of each, px."""
    means = [ResidualMeans.of(detector, sums) for detector, sums in parts]
    longest, farthest = max(m.longest for m in means), max(m.farthest for m in means)
    figures = []
    for (detector, sums), mean in zip(parts, means, strict=True):
        extent = float(np.ptp(corners(detector, range(len(detector)))[:, :2], axis=0).max())
        texts = _counts(detector, sums.sum(axis=(1, 2)))
        figure = layout(detector, mean.away, "mean away from the beam, px", texts, max(farthest, 1e-3))
        px = float(np.median(detector.pixel_sizes))
        figures.append(arrows(figure, mean.at, (mean.tip - mean.at) / (px * max(longest, 1e-6)), ARROW * extent))
    return figures, [m.longest for m in means]


def _counts(detector: Detector, by_panel: Floats) -> list[str]:
    return [f"{p.name}: {int(n):,} spots" for p, n in zip(detector.panels, by_panel[:, 0], strict=True)]


def shift_field(first: Detector, second: Detector) -> tuple[go.Figure, float]:
    """Return how panels moved, less the motion of the whole: arrows in the plane, colours along the beam; the longest in mm."""
    centre, move = displaced(first, second)
    longest = float(np.linalg.norm(move[:, :2], axis=1).max(initial=0.0))
    extent = np.ptp(corners(first, range(len(first)))[:, :2], axis=0).max()
    texts = [
        f"{panel.name}: x {1e3 * x:.1f}, y {1e3 * y:.1f}, along the beam {-1e3 * z:.1f} µm"
        for panel, (x, y, z) in zip(first.panels, move, strict=True)
    ]
    figure = layout(first, -1e3 * move[:, 2], "along the beam, µm", texts, 0.1)
    return arrows(figure, centre[:, :2], move[:, :2] / max(longest, 1e-12), ARROW * float(extent)), longest


def panel_bars(after: PanelStatisticsTable, before: PanelStatisticsTable | None = None) -> go.Figure:
    """Return radial, transverse and ΔΨ RMSD of the panels, and where there is a before, that too."""
    titles = ("away from the beam, px", "around the beam, px", "ΔΨ, °")
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.09)
    columns = ("rmsd_radial", "rmsd_transverse", "rmsd_psi")
    tables = [(before, "before", SOFT), (after, "after", INDEXED)] if before is not None else [(after, "RMSD", INDEXED)]
    for row, column in enumerate(columns, 1):
        for table, name, colour in tables:
            assert table is not None
            figure.add_trace(
                go.Bar(x=table["panel"][:-1], y=table[column][:-1], name=name, marker_color=colour, showlegend=row == 1, text=None),
                row=row,
                col=1,
            )
            figure.add_hline(y=float(table[column][-1]), line_color=colour, line_dash="dot", line_width=1, row=row, col=1)
    figure.update_xaxes(title="panel", row=3, col=1)
    styled(figure, 620)
    figure.update_layout(bargap=0.15, barmode="group", legend={"orientation": "h", "y": 1.09, "x": 0.75})
    return figure


def halves(rows: Sequence[dict[str, Any]]) -> go.Figure:
    """Return the differences of two half-sets over their stated uncertainty, with lines at one and three σ.

    ``rows`` have level, group, parameter, difference, sigma (of the difference).
    """
    names = list(dict.fromkeys(str(row["parameter"]) for row in rows))
    figure = go.Figure()
    for level in dict.fromkeys(int(row["level"]) for row in rows):
        mine = [row for row in rows if int(row["level"]) == level and float(row["sigma"]) > 0]
        figure.add_scatter(
            x=[names.index(str(row["parameter"])) + 0.12 * (level - 1) for row in mine],
            y=[float(row["difference"]) / float(row["sigma"]) for row in mine],
            mode="markers",
            name=f"level {level}",
            text=[f"{row['group']}: {row['difference']:.4g} ± {row['sigma']:.2g}" for row in mine],
            hoverinfo="text",
            marker={"size": 5, "opacity": 0.7},
        )
    for value, dash in ((1.0, "dash"), (-1.0, "dash"), (3.0, "dot"), (-3.0, "dot")):
        figure.add_hline(y=value, line_dash=dash, line_color=HIT, line_width=1)
    figure.update_xaxes(tickvals=list(range(len(names))), ticktext=names)
    figure.update_yaxes(title="difference of the halves / its σ")
    return styled(figure, 380)
