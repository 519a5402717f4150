"""The report's part about merged data: statistics by shell, how true the standard deviations are, where the data end."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from xfelproc.report import figures, words
from xfelproc.report.figures import INDEXED, SOFT, styled

COLUMNS: tuple[tuple[str, str], ...] = (
    ("d_max", "d_max Å"),
    ("d_min", "d_min Å"),
    ("n_observations", "observations"),
    ("n_unique", "unique"),
    ("completeness", "completeness %"),
    ("multiplicity", "multiplicity"),
    ("i_over_sigma", "⟨I/σ⟩"),
    ("cc_half", "CC1/2"),
    ("cc_star", "CC*"),
    ("r_split", "R_split %"),
    ("n_pairs", "pairs"),
    ("r_meas", "R_meas %"),
    ("r_meas_recorded", "R_meas, recorded %"),
    ("cc_half_sigma_tau", "CC1/2 σ-τ"),
    ("chi2", "χ²"),
    ("cc_control", "control CC"),
    ("cc_off_lattice", "off-lattice CC"),
    ("cc_anomalous", "CC_anom"),
    ("anomalous_signal", "⟨|ΔI|/σ⟩"),
    ("cc_reference", "CC_ref"),
    ("r_reference", "R_ref %"),
)
ALWAYS = 10
"""Columns of the table; from this one on, those of which no shell knows a value are not shown."""
DIGITS = {"cc_half": 4, "cc_star": 4, "cc_half_sigma_tau": 4, "cc_control": 3, "cc_anomalous": 3, "cc_reference": 4}
DIGITS |= {"cc_off_lattice": 3, "completeness": 1, "r_meas": 1, "r_meas_recorded": 1}
PERCENT = ("completeness", "r_meas", "r_meas_recorded", "r_reference")


def merged_section(
    shells: Sequence[Mapping[str, Any]], overall: Mapping[str, Any], quality: Mapping[str, Any], plot: Callable[[Any], str]
) -> str:
    """Return the HTML of the section, empty without shells.

    ``quality`` is that of ``merge.json``, empty where it has none; ``plot`` makes HTML of a figure.
    """
    if not shells:
        return ""
    rows = [*shells, *([overall] if overall else [])]
    shown = [column for i, column in enumerate(COLUMNS) if i < ALWAYS or any(_known(row.get(column[0])) for row in rows)]
    heads = "".join(f"<th>{html.escape(head)}</th>" for _, head in shown)
    body = "".join("<tr>" + "".join(f"<td>{_cell(name, row)}</td>" for name, _ in shown) + "</tr>" for row in rows)
    notes = "".join(f"<p class='note'>{html.escape(text)}</p>" for text in notes_of(overall, quality))
    text = "<h2>Merged data</h2>" + plot(figures.shells([dict(row) for row in shells]))
    text += f"{notes}<table><tr>{heads}</tr>{body}</table>"
    deviations = quality.get("normal_probability", {})
    if deviations.get("expected"):
        text += "<h3>Deviations of the observations from their means, over their σ, against normal ones</h3>"
        text += plot(normal_plot(deviations["expected"], deviations["found"]))
    return text


def notes_of(overall: Mapping[str, Any], quality: Mapping[str, Any]) -> list[str]:
    """Return sentences about the set that R_split is of, the resolution, and the error model."""
    sentences = []
    if overall.get("n_pairs"):
        share = words.number(100 * overall["n_pairs"] / max(overall.get("n_possible", 0), 1), 1, " %")
        sentences.append(
            f"CC1/2 and R_split are of the {overall['n_pairs']:,} reflections ({share} of those possible) that lattices of both"
            " halves measured; half-sets are of lattices."
        )
    if resolution := quality.get("resolution"):
        sentences.append(words.resolution(resolution))
    model = quality.get("error_model")
    if model and model["fitted"]:
        relative = words.number(100 * model["relative"], 1, " %")
        sentences.append(
            f"Errors of the observations: σ of counting times {words.number(model['counting'], 2)}, {relative} of the intensity,"
            f" {words.number(100 * model['partiality'], 1, ' %')} of the full one, {words.number(model['position'], 2)} widths in"
            f" the excitation error, {words.number(100 * model['width'], 0, ' %')} of the width; fitted to"
            f" {model['degrees']:,} differences."
        )
    return sentences


def normal_plot(expected: Sequence[float], found: Sequence[float]) -> go.Figure:
    """Draw deviations found against those of a normal distribution; true standard deviations give the diagonal."""
    figure = go.Figure()
    ends = [min(expected), max(expected)]
    figure.add_scatter(x=ends, y=ends, mode="lines", line_color=SOFT, name="normal")
    figure.add_scatter(x=list(expected), y=list(found), mode="lines", line_color=INDEXED, name="found")
    figure.update_xaxes(title="expected")
    figure.update_yaxes(title="found")
    return styled(figure, 360)


def _known(value: Any) -> bool:
    return value is not None and bool(np.isfinite(value))


def _cell(name: str, row: Mapping[str, Any]) -> str:
    value = row.get(name)
    if value is None:
        return words.DASH
    if name == "r_split":
        return words.r_split(value, 2)
    if isinstance(value, int):
        return f"{value:,}"
    return words.number(100 * value if name in PERCENT else value, DIGITS.get(name, 2))
