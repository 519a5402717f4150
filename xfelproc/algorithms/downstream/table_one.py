"""Table 1: data-collection statistics as journals print them, overall and of the outermost shell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Row = tuple[str, str, str]
LARGEST_R = 10.0
UNKNOWN = "-"


@dataclass(frozen=True)
class Experiment:
    """What is printed beside the statistics: wavelength in Å, cell in Å and degrees, numbers of frames (None: not told)."""

    space_group: str
    cell: tuple[float, ...]
    wavelength: float
    n_lattices: int | None = None
    n_frames: int | None = None
    n_hits: int | None = None
    n_indexed: int | None = None


@dataclass(frozen=True)
class TableOne:
    """Rows of name, value overall, and value of the outermost shell (empty: none)."""

    rows: tuple[Row, ...]
    outermost: str

    def text(self) -> str:
        """Return it as lines of aligned columns."""
        rows = [("", "overall", self.outermost), *self.rows]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [f"{a:{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}".rstrip() for a, b, c in rows]
        return "\n".join(lines) + "\n"

    def record(self) -> list[dict[str, str]]:
        """Return the rows as plain mappings."""
        return [{"name": name, "overall": overall, "outermost": outer} for name, overall, outer in self.rows]


def table_one(
    experiment: Experiment, overall: Mapping[str, Any], shells: Sequence[Mapping[str, Any]], analysis: Mapping[str, Any]
) -> TableOne:
    """Return Table 1.

    Parameters
    ----------
    experiment
        What was measured.
    overall, shells
        Statistics as the columns of ShellTable, over all and by shell from low resolution on; shells without an observation
        at the end do not count as the outermost.
    analysis
        Statistics of the intensities, as `record.record_of` gives them.
    """
    outer: Mapping[str, Any] = next((shell for shell in reversed(shells) if shell["n_unique"]), {})
    rows = [*_experiment_rows(experiment), ("Resolution (Å)", _range(overall), _range(outer) if outer else "")]
    for name, key, scale, digits in (
        ("Unique reflections", "n_unique", 1, 0),
        ("Observations", "n_observations", 1, 0),
        ("Completeness (%)", "completeness", 100, 2),
        ("Multiplicity", "multiplicity", 1, 1),
        ("Mean I/σ(I)", "i_over_sigma", 1, 2),
        ("R_split (%)", "r_split", 100, 2),
        ("CC1/2", "cc_half", 1, 4),
        ("CC*", "cc_star", 1, 4),
        ("CC1/2 (σ-τ)", "cc_half_sigma_tau", 1, 4),
        ("R_meas", "r_meas", 1, 3),
        ("R_pim", "r_pim", 1, 3),
        ("R_meas, recorded intensities", "r_meas_recorded", 1, 3),
        ("R_pim, recorded intensities", "r_pim_recorded", 1, 3),
        ("CC_anom", "cc_anomalous", 1, 3),
    ):
        values = [_number(key, row.get(key), digits, scale) if row else "" for row in (overall, outer)]
        if not (key.endswith("_recorded") and values[0] == UNKNOWN):  # observations that came scaled
            rows.append((name, values[0], values[1]))
    rows += [(name, value, "") for name, value in _analysis_rows(analysis)]
    return TableOne(tuple(rows), "outermost shell" if outer else "")


def _experiment_rows(experiment: Experiment) -> list[Row]:
    cell = experiment.cell
    rows = [
        ("Wavelength (Å)", f"{experiment.wavelength:.5f}", ""),
        ("Space group", experiment.space_group, ""),
        ("a, b, c (Å)", ", ".join(f"{v:.2f}" for v in cell[:3]), ""),
        ("α, β, γ (°)", ", ".join(f"{v:.2f}" for v in cell[3:6]), ""),
    ]
    numbers = (
        ("Frames", experiment.n_frames),
        ("Hits", experiment.n_hits),
        ("Indexed frames", experiment.n_indexed),
        ("Merged lattices", experiment.n_lattices),
    )
    return rows + [(name, f"{value:,}", "") for name, value in numbers if value is not None]


def _range(row: Mapping[str, Any]) -> str:
    low = row["d_max"]
    return f"{low:.2f}-{row['d_min']:.2f}" if np.isfinite(low) else f"∞-{row['d_min']:.2f}"


def _number(key: str, value: float | None, digits: int, scale: float = 1) -> str:
    # an R value of a shell without signal can be anything
    if value is None or not np.isfinite(value) or (key.startswith("r_") and not 0 <= value <= LARGEST_R):
        return UNKNOWN
    return f"{scale * value:,.{digits}f}"


def _analysis_rows(analysis: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if plot := analysis.get("wilson"):
        rows.append(("Wilson B (Å²)", f"{plot['b_factor']:.1f} ± {plot['b_sigma']:.1f}"))
    if (found := analysis.get("anisotropy")) and found["n_free"]:
        rows.append(("Anisotropy, largest less smallest B (Å²)", f"{found['range_b']:.1f}"))
        axes = [axis for axis in found["axes"] if axis["name"] in ("a*", "b*", "c*")]
        rows.append(("Resolution along a*, b*, c* (Å)", ", ".join(_reach(axis["d_min"], axis["beyond"]) for axis in axes)))
    if test := analysis.get("l_test"):
        rows.append(("L-test ⟨|L|⟩, ⟨L²⟩", f"{test['mean_abs']['value']:.3f}, {test['mean_square']['value']:.3f}"))
    if found := analysis.get("translation"):
        rows.append(("Largest Patterson peak (% of origin)", f"{100 * found['height']:.0f}"))
    return rows


def _reach(d_min: float | None, beyond: bool) -> str:
    return "-" if d_min is None else f"{'≤ ' if beyond else ''}{d_min:.2f}"
