"""The overall report of a campaign: runs and groups in two tables, one self-contained HTML file."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xfelproc.report.page import STYLE
from xfelproc.report.words import number, r_split


@dataclass(frozen=True)
class CampaignRow:
    """A run or a group: name, state, why, counts of frames by status, merged figures (None if there are none), its report."""

    name: str
    state: str
    message: str
    frames: int
    counts: Mapping[str, int]
    merged: Mapping[str, Any] | None
    link: str | None
    columns: Mapping[str, str]


HEADS = ("frames", "hits %", "indexed % of hits", "lattices", "d_min Å", "completeness %", "multiplicity", "CC1/2", "R_split %")
LONGEST_REASON = 160
"""Letters of a reason in a table."""
EXTRA = """
td.text,th.text{text-align:left}.done{color:#15803d}.failed{color:#b91c1c}.other{color:#a16207}
td.why{text-align:left;max-width:420px;white-space:normal;overflow-wrap:anywhere;color:#6b7280}
.warn,td.text{overflow-wrap:anywhere}td.text{max-width:320px}
"""


def build_campaign_report(title: str, runs: Sequence[CampaignRow], groups: Sequence[CampaignRow], notes: Sequence[str]) -> str:
    """Return the HTML."""
    total, done = len(runs), sum(row.state == "done" for row in runs)
    frames = sum(row.frames for row in runs)
    indexed = sum(_indexed(row.counts) for row in runs)
    tiles = "".join(
        f"<div class='tile'><b>{value}</b><span>{label}</span></div>"
        for value, label in (
            (f"{done} of {total}", "runs done"),
            (f"{sum(row.state == 'failed' for row in runs)}", "runs that failed"),
            (f"{frames:,}", "frames"),
            (f"{indexed:,}", "frames indexed"),
        )
    )
    warnings = "".join(f"<div class='warn'>{html.escape(text)}</div>" for text in notes)
    parts = [f"<h1>{html.escape(title)}</h1><div class='tiles'>{tiles}</div>{warnings}"]
    if groups:
        parts.append("<h2>Groups</h2>" + _table(groups))
    parts.append("<h2>Runs</h2>" + _table(runs))
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{STYLE}{EXTRA}</style></head><body>{''.join(parts)}</body></html>"
    )


def _table(rows: Sequence[CampaignRow]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row.columns if name not in ("run", "files")))
    heads = "".join(f"<th class='text'>{html.escape(name)}</th>" for name in ("name", *columns, "state"))
    heads += "".join(f"<th>{name}</th>" for name in HEADS) + "<th class='text'>why</th>"
    return f"<table><tr>{heads}</tr>{''.join(_row(row, columns) for row in rows)}</table>"


def _row(row: CampaignRow, columns: Sequence[str]) -> str:
    name = html.escape(row.name)
    if row.link is not None:
        name = f"<a href='{html.escape(row.link)}'>{name}</a>"
    kind = row.state if row.state in ("done", "failed") else "other"
    texts = [name, *(html.escape(row.columns.get(column, "")) for column in columns), f"<span class='{kind}'>{row.state}</span>"]
    cells = "".join(f"<td class='text'>{text}</td>" for text in texts)
    cells += "".join(f"<td>{text}</td>" for text in figures_of(row))
    return f"<tr>{cells}<td class='why'>{_why(row.message)}</td></tr>"


def _why(message: str) -> str:
    """Return a reason; of a long one the beginning, which opens to all of it."""
    short = shortened(message)
    if short == message:
        return html.escape(message)
    return f"<details><summary>{html.escape(short)}</summary>{html.escape(message)}</details>"


def shortened(message: str) -> str:
    """Return the beginning of a long reason, on one line."""
    line = " ".join(message.split())
    return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON].rsplit(' ', 1)[0]} ..."


def figures_of(row: CampaignRow) -> tuple[str, ...]:
    """Return the figures under `HEADS` as text; a dash where there is none."""
    if not row.frames:
        return ("-",) * len(HEADS)
    hits = sum(n for status, n in row.counts.items() if status in ("HIT", "INDEXED", "INTEGRATED"))
    first = (
        f"{row.frames:,}",
        f"{100 * hits / row.frames:.1f}",
        f"{100 * _indexed(row.counts) / hits:.1f}" if hits else "-",
        f"{row.counts.get('LATTICES', 0):,}",
    )
    if row.merged is None:
        return (*first, *("-",) * (len(HEADS) - len(first)))
    merged = row.merged
    return (
        *first,
        number(merged["d_min"], 2),
        number(100 * merged["completeness"], 1),
        number(merged["multiplicity"], 1),
        number(merged["cc_half"], 4),
        r_split(merged["r_split"], 2),
    )


def _indexed(counts: Mapping[str, int]) -> int:
    return counts.get("INDEXED", 0) + counts.get("INTEGRATED", 0)
