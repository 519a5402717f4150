"""The report's part about what merged intensities tell of the crystal: Table 1, Wilson plot, twinning, anisotropy."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from xfelproc.report import words
from xfelproc.report.figures import HIT, INDEXED, PICTURE_WIDTH, SOFT, styled

Record = Mapping[str, Any]


def intensities_section(analysis: Record, table_one: Sequence[Mapping[str, str]], plot: Callable[[Any], str]) -> str:
    """Return the HTML of the section, empty where nothing was analysed.

    ``analysis`` and ``table_one`` are those of ``merge.json`` (``downstream`` and ``table_one``); ``plot`` makes HTML of a figure.
    """
    text = ""
    if table_one:
        rows = [(row["name"], row["overall"], row["outermost"]) for row in table_one]
        text += "<h2>Table 1</h2>" + _table(("", "overall", "outermost shell"), rows)
    if not analysis or analysis.get("mean_intensity") is None:
        return text
    text += "<h2>Intensities</h2>"
    text += "".join(f"<p class='note'>{html.escape(sentence)}</p>" for sentence in notes_of(analysis))
    plots = []
    if wilson := analysis.get("wilson"):
        plots.append(f"<div><h3>Wilson plot</h3>{plot(wilson_figure(wilson))}</div>")
    if test := analysis.get("l_test"):
        plots.append(f"<div><h3>L-test</h3>{plot(l_figure(test))}</div>")
    text += f"<div class='pair'>{''.join(plots)}</div>" if plots else ""
    return text + _twin_laws(analysis.get("twin_laws", ())) + _axes(analysis.get("anisotropy"))


def notes_of(analysis: Record) -> list[str]:
    """Return sentences about B, moments, L-test, anisotropy, amplitudes and free flags."""
    sentences = []
    if wilson := analysis.get("wilson"):
        sentences.append(
            f"Wilson B {wilson['b_factor']:.1f} ± {wilson['b_sigma']:.1f} Å² from {wilson['n_reflections']:,} reflections of"
            f" {wilson['d_max']:.2f}-{wilson['d_min']:.2f} Å."
        )
    moments = analysis.get("moments") or {}
    if acentric := moments.get("acentric"):
        sentences.append(f"⟨I²⟩/⟨I⟩² of acentric reflections {_estimate(acentric)} (2 untwinned, 1.5 twinned perfectly).")
    if centric := moments.get("centric"):
        sentences.append(f"⟨I²⟩/⟨I⟩² of centric reflections {_estimate(centric)} (3 untwinned, 2 twinned perfectly).")
    if test := analysis.get("l_test"):
        sentences.append(
            f"L-test to {test['d_min']:.2f} Å: ⟨|L|⟩ {_estimate(test['mean_abs'])} (0.5 untwinned, 0.375 twinned perfectly), ⟨L²⟩"
            f" {_estimate(test['mean_square'])} (0.333, 0.2)."
        )
    if analysis.get("n_rejected"):
        sentences.append(f"{analysis['n_rejected']:,} intensities below -4 σ have no amplitude.")
    free = analysis.get("free") or {}
    if free.get("from"):
        sentences.append(f"Free flags: {free['n_known']:,} reflections have those of the given file; test set {free['n_test']:,}.")
    return sentences


def _estimate(value: Record, digits: int = 3) -> str:
    return f"{value['value']:.{digits}f} ± {value['sigma']:.{digits}f}"


def wilson_figure(wilson: Record) -> go.Figure:
    """Draw ln of mean intensity over scattering power by shell, and the fitted line."""
    s2, line = wilson["s2"], wilson["line"]
    inside = [wilson["d_max"] ** -2 <= x <= wilson["d_min"] ** -2 for x in s2]
    figure = go.Figure()
    error = {"type": "data", "array": wilson["log_sigma"], "thickness": 1}
    figure.add_scatter(x=s2, y=wilson["log_ratio"], error_y=error, mode="markers", marker_color=INDEXED, name="shells")
    fitted = [y if used else None for y, used in zip(line, inside, strict=True)]
    figure.add_scatter(x=s2, y=fitted, mode="lines", line_color=HIT, name=f"B = {wilson['b_factor']:.1f} Å²")
    ticks = [x for x in s2[:: max(1, len(s2) // 8)] if x > 0]
    figure.update_xaxes(title="d, Å (axis in 1/d²)", tickvals=ticks, ticktext=[f"{x**-0.5:.2f}" for x in ticks])
    figure.update_yaxes(title="ln(⟨I/ε⟩ / Σf²)")
    return _beside(figure)


def l_figure(test: Record) -> go.Figure:
    """Draw the cumulative distribution of |L| beside those of an untwinned and of a perfectly twinned crystal."""
    levels = np.asarray(test["levels"])
    figure = go.Figure()
    figure.add_scatter(x=levels, y=levels, mode="lines", line={"color": SOFT, "dash": "dot"}, name="untwinned")
    figure.add_scatter(x=levels, y=levels * (3 - levels**2) / 2, mode="lines", line_color=SOFT, name="twinned perfectly")
    figure.add_scatter(x=levels, y=test["cumulative"], mode="lines+markers", line_color=INDEXED, name="found")
    figure.update_xaxes(title="|L|")
    figure.update_yaxes(title="N(|L|)")
    return _beside(figure)


def _beside(figure: go.Figure) -> go.Figure:
    """Return the figure with the width of half a page: a plot that finds its own takes the whole one while it is drawn."""
    styled(figure, 360)
    figure.update_layout(width=PICTURE_WIDTH)
    return figure


def _twin_laws(laws: Sequence[Record]) -> str:
    if not laws:
        return ""
    heads = ("twin law", "kind", "obliquity °", "pairs", "CC of mates", "fraction: Britton", "H-test", "moments")
    rows = [
        (
            law["operator"],
            "merohedral" if law["merohedral"] else "pseudo-merohedral",
            f"{law['obliquity']:.2f}",
            f"{law['n_pairs']:,}",
            words.DASH if law["correlation"] is None else f"{law['correlation']:.3f}",
            *(words.DASH if law[name] is None else _estimate(law[name]) for name in ("britton", "h_test", "moments")),
        )
        for law in laws
    ]
    note = "<p class='note'>The law of a twin makes the others look twinned a little: the largest fraction counts.</p>"
    return "<h3>Twin laws of the lattice</h3>" + _table(heads, rows) + note


def _axes(found: Record | None) -> str:
    if not found:
        return ""
    rows = [
        (
            axis["name"],
            ", ".join(f"{round(v, 2) + 0.0:.2f}" for v in axis["direction"]),
            f"{axis['delta_b']:.2f} ± {axis['delta_b_sigma']:.2f}" if found["n_free"] else words.DASH,
            words.DASH if axis["d_min"] is None else f"{'≤ ' if axis['beyond'] else ''}{axis['d_min']:.2f}",
        )
        for axis in found["axes"]
    ]
    heads = ("axis", "direction (a along x)", "ΔB Å²", "resolution Å, local ⟨I/σ⟩ ≥ 1.2")
    return "<h3>Anisotropy</h3>" + _table(heads, rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    cells = ((f"<td class='text'>{html.escape(row[0])}</td>", *(f"<td>{html.escape(v)}</td>" for v in row[1:])) for row in rows)
    return f"<table><tr>{head}</tr>{''.join('<tr>' + ''.join(row) + '</tr>' for row in cells)}</table>"
