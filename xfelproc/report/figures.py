"""Plotly figures of the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from xfelproc.report.summary import STAGES, RunSummary
from xfelproc.report.words import MEANINGLESS

INK, HIT, INDEXED, SOFT = "#1f2937", "#f59e0b", "#2563eb", "#9ca3af"
TOP = 66
"""Pixels above a plot: the row of buttons that appears under the pointer, and below it the titles of the plots and the legend."""


def styled(figure: go.Figure, height: int = 340) -> go.Figure:
    """Return the figure in the report's style."""
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 60, "r": 20, "t": TOP, "b": 50},
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        legend={"orientation": "h", "y": 1.12, "x": 0},
    )
    return figure


def rates(summary: RunSummary) -> go.Figure:
    """Hit and indexing rate along the run, a point a work unit or a few of them."""
    frames = np.maximum(summary.bin_frames, 1)
    first, hits, indexed = summary.first_frames, summary.bin_hits, summary.bin_indexed
    figure = go.Figure()
    figure.add_scatter(x=first, y=100 * hits / frames, name="hits, % of frames", mode="lines+markers", line_color=HIT)
    figure.add_scatter(x=first, y=100 * indexed / frames, name="indexed, % of frames", mode="lines+markers", line_color=INDEXED)
    figure.add_scatter(
        x=first, y=100 * indexed / np.maximum(hits, 1), name="indexed, % of hits", mode="lines", line={"color": SOFT, "dash": "dot"}
    )
    figure.update_xaxes(title="first frame")
    figure.update_yaxes(title="%", range=[-2, 105])
    return styled(figure)


def reasons(summary: RunSummary) -> go.Figure:
    """Why frames did not come to integration."""
    common = summary.reasons.most_common(12)[::-1]
    labels = [text if len(text) <= 70 else text[:67] + "..." for text, _ in common]
    figure = go.Figure(
        go.Bar(
            x=[count for _, count in common],
            y=labels,
            orientation="h",
            marker_color=HIT,
            hovertext=[summary.examples.get(text, "") for text, _ in common],
        )
    )
    figure.update_xaxes(title="frames")
    figure.update_yaxes(automargin=True)
    return styled(figure, 120 + 28 * max(3, len(common)))


def histogram(values: NDArray[Any], bins: int, colour: str) -> go.Bar:
    """Return the histogram as bars; values that are all the same are one bar."""
    low, high = axis_range(values) or (0.0, 1.0)
    counts, edges = np.histogram(values, bins=bins if np.ptp(edges_of(values)) else 1, range=(low, high))
    width = np.diff(edges) if len(counts) > 1 else np.array([0.1 * (high - low)])
    return go.Bar(x=(edges[:-1] + edges[1:]) / 2, y=counts, width=width, marker_color=colour, marker_line_width=0, showlegend=False)


def edges_of(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return the least and the largest value; the same twice if they differ by rounding only."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    return np.array([low, high if high - low > 1e-6 * max(1.0, abs(high)) else low])


def axis_range(values: NDArray[Any]) -> tuple[float, float] | None:
    """Return what an axis shows; None: nothing to show."""
    if not len(values):
        return None
    low, high = edges_of(values)
    return (float(low), float(high)) if high > low else (float(low) - 1.0, float(low) + 1.0)


def cells(values: NDArray[np.float64], consensus: Sequence[float] | None) -> go.Figure:
    """Histograms of the refined cells with the consensus (or the cell given) as a line."""
    names = ("a, Å", "b, Å", "c, Å", "α, °", "β, °", "γ, °")
    figure = make_subplots(rows=2, cols=3, subplot_titles=names, vertical_spacing=0.2)
    for k in range(6):
        row, column = k // 3 + 1, k % 3 + 1
        figure.add_trace(histogram(values[:, k], 60, INDEXED), row=row, col=column)
        figure.update_xaxes(range=axis_range(values[:, k]), row=row, col=column)
        if consensus is not None:
            figure.add_vline(x=float(consensus[k]), line_color=HIT, line_width=2, row=row, col=column)
    return styled(figure, 460)


def spots_and_rmsd(summary: RunSummary) -> go.Figure:
    """Spots a frame and RMSD a lattice."""
    figure = make_subplots(rows=1, cols=2, subplot_titles=("spots a frame", "RMSD of a lattice, px"))
    figure.add_trace(histogram(summary.n_spots, 80, HIT), row=1, col=1)
    figure.add_trace(histogram(summary.rmsd, 80, INDEXED), row=1, col=2)
    figure.update_yaxes(title="frames", type="log", row=1, col=1)
    figure.update_yaxes(title="lattices", row=1, col=2)
    return styled(figure)


PICTURE_WIDTH = 560
"""Width of a picture on the page, px: fixed, so that its pixels stay square whatever the window."""


def picture(uri: str, width: int, height: int) -> go.Figure:
    """An image that can be zoomed; its pixels are the axes' units, rows downwards."""
    figure = go.Figure()
    figure.add_layout_image(source=uri, xref="x", yref="y", x=0, y=0, sizex=width, sizey=height, sizing="stretch", layer="below")
    figure.update_xaxes(range=[0, width], visible=False)
    figure.update_yaxes(range=[height, 0], visible=False)
    inner = PICTURE_WIDTH - 10
    styled(figure, round(inner * height / width) + 60)
    figure.update_layout(
        width=PICTURE_WIDTH,
        margin={"l": 5, "r": 5, "t": 30, "b": 30},
        legend={"orientation": "h", "y": -0.01, "x": 0},
    )
    return figure


def residual_arrows(figure: go.Figure, at: NDArray[np.float64], arrow: NDArray[np.float64], scale: float) -> go.Figure:
    """Draw arrows (n, 2) at places (n, 2) on a picture; ``scale`` picture pixels stand for 1 px of residual."""
    x = np.column_stack([at[:, 0], at[:, 0] + scale * arrow[:, 0], np.full(len(at), np.nan)]).ravel()
    y = np.column_stack([at[:, 1], at[:, 1] + scale * arrow[:, 1], np.full(len(at), np.nan)]).ravel()
    figure.add_scatter(x=x, y=y, mode="lines", line={"color": INDEXED, "width": 2}, name="observed - predicted")
    figure.add_scatter(x=at[:, 0], y=at[:, 1], mode="markers", marker={"size": 4, "color": HIT}, showlegend=False)
    return figure


def _shown(r_split: float) -> float | None:
    """Return R_split in %; None, a gap in the line, where there is no signal."""
    return 100 * r_split if 0 <= r_split <= MEANINGLESS else None


def shells(rows: Sequence[dict[str, Any]]) -> go.Figure:
    """CC1/2, R_split and I/σ against resolution (axis in 1/d²)."""
    s2 = [1.0 / row["d_max"] ** 2 / 2 + 1.0 / row["d_min"] ** 2 / 2 for row in rows]
    ticks = [f"{row['d_min']:.2f}" for row in rows]
    figure = make_subplots(rows=1, cols=3, subplot_titles=("CC1/2", "R_split, %", "⟨I/σ⟩ and multiplicity"))
    figure.add_scatter(
        x=s2, y=[r["cc_half"] for r in rows], mode="lines+markers", line_color=INDEXED, showlegend=False, row=1, col=1
    )
    figure.add_scatter(
        x=s2, y=[_shown(r["r_split"]) for r in rows], mode="lines+markers", line_color=HIT, showlegend=False, row=1, col=2
    )
    figure.add_scatter(
        x=s2, y=[r["i_over_sigma"] for r in rows], mode="lines+markers", name="⟨I/σ⟩", line_color=INDEXED, row=1, col=3
    )
    figure.add_scatter(
        x=s2, y=[r["multiplicity"] for r in rows], mode="lines+markers", name="multiplicity", line_color=SOFT, row=1, col=3
    )
    figure.update_xaxes(tickvals=s2[::2], ticktext=ticks[::2], title="d_min of the shell, Å")
    figure.update_yaxes(range=[-0.05, 1.05], row=1, col=1)
    figure.update_yaxes(range=[0, 120], row=1, col=2)
    styled(figure, 360)
    figure.update_layout(legend={"orientation": "h", "y": -0.25, "x": 0.7})
    return figure


def times(summary: RunSummary) -> go.Figure:
    """Typical CPU time a frame and stage, of frames without and with a hit."""
    mean = summary.typical_times()
    figure = go.Figure()
    for number, stage in enumerate(STAGES):
        figure.add_bar(y=["blank", "hit"], x=[mean["blank"][number], mean["hit"][number]], name=stage, orientation="h")
    figure.update_layout(barmode="stack")
    figure.update_xaxes(title="CPU ms a frame")
    return styled(figure, 240)
