"""The report's part about groups of lattices that were merged apart, and about the differences between them."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from xfelproc.report import words
from xfelproc.report.figures import HIT, INDEXED, SOFT, styled

Record = Mapping[str, Any]
COLUMNS = (
    ("n_observations", "observations", 0, 1),
    ("n_unique", "unique", 0, 1),
    ("completeness", "completeness %", 1, 100),
    ("multiplicity", "multiplicity", 1, 1),
    ("i_over_sigma", "⟨I/σ⟩", 2, 1),
    ("cc_half", "CC1/2", 4, 1),
    ("r_split", "R_split %", 2, 100),
)
DIFFERENCES = (
    ("n_pairs", "reflections", 0, 1),
    ("r_iso", "R_iso %", 2, 100),
    ("cc_iso", "CC_iso", 4, 1),
    ("amplitude_signal", "⟨|ΔF|/σ⟩", 2, 1),
    ("chi2", "⟨(ΔI/σ)²⟩", 2, 1),
    ("cc_half", "CC1/2 of ΔI", 3, 1),
    ("true_difference", "true ΔI / ⟨I⟩ %", 2, 100),
)


def groups_section(groups: Sequence[Record], differences: Sequence[Record], plot: Callable[[Any], str]) -> str:
    """Return the HTML of the section, empty without groups.

    ``groups`` and ``differences`` are those of ``merge.json``; ``plot`` makes HTML of a figure.
    """
    if not groups:
        return ""
    heads = ("group", "frames", "lattices", "merged", *(head for _, head, _, _ in COLUMNS))
    rows = [
        (
            group["name"],
            *(f"{group[name]:,}" for name in ("n_frames", "n_lattices", "n_lattices_used")),
            *_values(group.get("overall", {}), COLUMNS),
        )
        for group in groups
    ]
    text = "<h2>Groups</h2><p class='note'>Lattices of all groups are scaled together, and merged apart.</p>" + _table(heads, rows)
    for difference in differences:
        text += f"<h3>{html.escape(difference['group'])} less {html.escape(difference['reference'])}</h3>"
        text += "".join(f"<p class='note'>{html.escape(sentence)}</p>" for sentence in notes_of(difference))
        rows = [(_range(row), *_values(row, DIFFERENCES)) for row in difference["shells"]]
        rows.append(("all", *_values(difference["overall"], DIFFERENCES)))
        text += plot(difference_figure(difference["shells"])) + _table(("Å", *(head for _, head, _, _ in DIFFERENCES)), rows)
    return text


def notes_of(difference: Record) -> list[str]:
    """Return sentences about a difference: whether there is one, and what was taken off before."""
    overall, sentences = difference["overall"], []
    chi2, correlation = (words.number(overall[name], digits) for name, digits in (("chi2", 2), ("cc_half", 3)))
    sentences.append(
        f"Mean (ΔI/σ)² is {chi2} (1 for noise alone), and the differences of the half-sets correlate by {correlation} (0 for noise "
        "alone)."
    )
    if difference["scaled"]:
        scale, b_factor = difference["log_scale"], difference["b_factor"]
        sentences.append(f"Before, a scale of {scale:+.4f} (log) and ΔB of {b_factor:+.2f} Å² were taken off.")
    return sentences


def difference_figure(shells: Sequence[Record]) -> go.Figure:
    """Draw R_iso, the mean (ΔI/σ)² and the correlation of the halves' differences against resolution (axis in 1/d²)."""
    s2 = [0.5 * (row["d_max"] ** -2 + row["d_min"] ** -2) for row in shells]
    figure = make_subplots(rows=1, cols=3, subplot_titles=("R_iso, %", "⟨(ΔI/σ)²⟩", "CC1/2 of ΔI"))
    for column, (name, scale, colour) in enumerate((("r_iso", 100, HIT), ("chi2", 1, INDEXED), ("cc_half", 1, INDEXED)), 1):
        y = [scale * row[name] for row in shells]
        figure.add_scatter(x=s2, y=y, mode="lines+markers", line_color=colour, showlegend=False, name=name, row=1, col=column)
    ends = [min(s2), max(s2)] if s2 else []
    figure.add_scatter(x=ends, y=[1.0] * len(ends), mode="lines", line_color=SOFT, showlegend=False, name="noise", row=1, col=2)
    figure.update_xaxes(tickvals=s2[::2], ticktext=[f"{row['d_min']:.2f}" for row in shells][::2], title="d_min of the shell, Å")
    figure.update_yaxes(range=[-0.25, 1.05], row=1, col=3)
    return styled(figure, 320)


def _range(row: Record) -> str:
    return f"{row['d_max']:.2f}-{row['d_min']:.2f}"


def _values(row: Record, columns: Sequence[tuple[str, str, int, int]]) -> list[str]:
    """Return what a row says as it is shown; dashes where it says nothing."""
    return [
        words.DASH
        if row.get(name) is None
        else words.r_split(row[name], digits)
        if name == "r_split"
        else words.number(scale * row[name], digits)
        for name, _, digits, scale in columns
    ]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    cells = ((f"<td class='text'>{html.escape(row[0])}</td>", *(f"<td>{html.escape(v)}</td>" for v in row[1:])) for row in rows)
    return f"<table><tr>{head}</tr>{''.join('<tr>' + ''.join(row) + '</tr>' for row in cells)}</table>"
