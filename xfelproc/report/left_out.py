"""The report's part about lattices that were left out of merging: how many, why, where along the run, by what they are judged."""

from __future__ import annotations

import html
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from xfelproc.report import words
from xfelproc.report.figures import HIT, INDEXED, SOFT, styled

Record = Mapping[str, Any]

OBSERVATIONS = {
    "flagged": "flagged by integration, or beyond the resolution limits",
    "panel": "on panels left out",
    "edge": "near an edge of their panel",
    "significance": "beyond the resolution to which their lattice has signal",
}
HISTOGRAMS = {
    "cell_deviation": "deviation from the median cell",
    "mahalanobis": "distance of the cell, standard deviations",
    "energy": "photon energy, eV",
    "delta_cc_half": "ΔCC1/2",
    "correlation": "CC to the mean of the others",
}
COLOURS = ("#dc2626", "#7c3aed", "#059669", "#d97706", "#0891b2", "#be185d", "#65a30d")
STRETCHES_SHOWN = 20


def left_out_section(counts: Record, lattices: Record, plot: Callable[[Any], str]) -> str:
    """Return the HTML of the section, empty of a merging that does not tell.

    ``counts`` are lattices by reason and ``lattices`` the rest of what ``merge.json`` says (``quality.left_out``, ``lattices``);
    ``plot`` makes HTML of a figure.
    """
    if not lattices:
        return ""
    along, total = lattices["along"], sum(counts.values())
    n_lattices = sum(along["lattices"])
    share = words.number(100 * total / max(n_lattices, 1), 1, " %")
    text = f"<h2>Lattices left out</h2><p class='note'>{total:,} of {n_lattices:,} lattices ({share}) were left out of merging."
    text += " Each has its reason, and what it is judged by, in merged/lattices.h5.</p>"
    for head, said, numbers in (("lattices", words.LEFT_OUT, counts), ("observations", OBSERVATIONS, lattices["observations"])):
        rows = [(why, f"{numbers[name]:,}") for name, why in said.items() if numbers.get(name)]
        text += _table((head, "number"), rows)
    if total and len(along["first_unit"]) > 1:
        text += f"<h3>Along the run</h3>{plot(along_figure(along))}"
    known = {name: lattices["histograms"][name] for name in HISTOGRAMS if lattices["histograms"].get(name)}
    if known:
        text += f"<h3>What lattices are judged by</h3>{plot(histogram_figure(known))}"
    return text + _stretches(lattices.get("stretches", ()))


def along_figure(along: Record) -> go.Figure:
    """Draw the share of the lattices left out, by reason, along the run."""
    figure = go.Figure()
    n = along["lattices"]
    for colour, name in zip(COLOURS, words.LEFT_OUT, strict=True):
        if name in along["left_out"]:
            shares = [100 * taken / max(some, 1) for taken, some in zip(along["left_out"][name], n, strict=True)]
            figure.add_bar(x=along["first_unit"], y=shares, name=words.LEFT_OUT[name], marker_color=colour, marker_line_width=0)
    figure.update_layout(barmode="stack", bargap=0.05)
    figure.update_xaxes(title="work unit")
    figure.update_yaxes(title="% of the lattices left out")
    return styled(figure)


def histogram_figure(histograms: Mapping[str, Record]) -> go.Figure:
    """Draw what lattices are judged by, those that are merged and the others; the last bins hold what is beyond."""
    columns = 2
    height = -(-len(histograms) // columns)
    titles = [HISTOGRAMS[name] for name in histograms]
    figure = make_subplots(rows=height, cols=columns, subplot_titles=titles, vertical_spacing=0.28 / height)
    for place, histogram in enumerate(histograms.values()):
        edges = histogram["edges"]
        middles = [0.5 * (a + b) for a, b in itertools.pairwise(edges)]
        for key, name, colour in (("kept", "merged", INDEXED), ("left_out", "left out", HIT)):
            bars = go.Bar(x=middles, y=histogram[key], name=name, marker_color=colour, marker_line_width=0, legendgroup=key)
            bars.showlegend = place == 0
            figure.add_trace(bars, row=place // columns + 1, col=place % columns + 1)
    figure.update_layout(barmode="stack", bargap=0)
    figure.update_yaxes(type="log", exponentformat="power", gridcolor=SOFT, gridwidth=0.3)
    return styled(figure, 60 + 260 * height)


def _stretches(rows: Sequence[Record]) -> str:
    if not rows:
        return ""
    shown = [
        (
            f"units {row['first']}-{row['end'] - 1}",
            f"{row['lattices']:,}",
            words.DASH if row["delta_cc_half"] is None else f"{row['delta_cc_half']:.2e}",
            "left out" if row["left_out"] else "merged",
        )
        for row in rows[:STRETCHES_SHOWN]
    ]
    more = f" Of {len(rows)} the {STRETCHES_SHOWN} lowest." if len(rows) > STRETCHES_SHOWN else ""
    note = f"<p class='note'>CC1/2 less that without the stretch, a lattice: below 0 it does harm.{more}</p>"
    return f"<h3>Stretches of the run</h3>{note}" + _table(("stretch", "lattices", "ΔCC1/2 a lattice", ""), shown)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    cells = ((f"<td class='text'>{html.escape(row[0])}</td>", *(f"<td>{html.escape(v)}</td>" for v in row[1:])) for row in rows)
    return f"<table><tr>{head}</tr>{''.join('<tr>' + ''.join(row) + '</tr>' for row in cells)}</table>"
