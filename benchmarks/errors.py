"""How true the standard deviations of merged intensities are: χ² of (I - I_true)/σ on simulated observations.

``python benchmarks/errors.py`` prints the table of docs/explanation/errors.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging import Merge, prepare
from xfelproc.algorithms.merging.final import merged_rows
from xfelproc.algorithms.merging.in_memory import block_in_memory, scale_blocks
from xfelproc.algorithms.merging.lattice_block import LatticeFacts
from xfelproc.algorithms.merging.output import output_block
from xfelproc.simulation.observations import ObservationSimulator

Floats = NDArray[np.float64]
SETS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("misset 0.005°", 300, {}),
    ("the same, 1000 lattices", 1000, {}),
    ("the same, 100 lattices", 100, {}),
    ("the same, 50 lattices", 50, {}),
    ("relative error 5 %, B spread 5 Å²", 300, {"error_intensity": 0.05, "b_spread": 5.0}),
    ("stated σ half of the true", 300, {"sigma_factor": 0.5}),
    ("30 % Lorentzian, lower where wider", 300, {"lorentzian": 0.3, "keep_area": True}),
    ("1 % of the observations outliers", 300, {"outlier_observations": 0.01}),
    ("10 % of the lattices wrong, cell spread 0.1 %", 500, {"outlier_lattices": 0.1, "cell_spread": 0.001}),
    ("a tenth of the photons", 300, {"photons": 300.0}),
    ("Bijvoet ratio 3 %", 300, {"anomalous": 0.03}),
    ("Bijvoet ratio 3 %, 1000 lattices", 1000, {"anomalous": 0.03}),
)
BINS = 8


@dataclass(frozen=True)
class Found:
    """Merged rows with the truth on their scale: both mates (2, n), and 1/d (n,)."""

    rows: dict[str, NDArray[Any]]
    mates: Floats
    s: Floats


def merge(n: int, settings: dict[str, Any]) -> Found:
    """Return n simulated lattices, merged."""
    merging = Merge(min_lattice_cc=0.3)
    simulator = ObservationSimulator.of(**({"misset": 0.005} | settings))
    observed, cell = simulator.simulate(0, n), simulator.settings.cell
    group, crystals = gemmi.SpaceGroup(simulator.settings.space_group), observed.crystals
    facts = replace(LatticeFacts.unknown(n, cell), A=crystals.A, wavelength=crystals.wavelength)
    block, state = block_in_memory(prepare(observed.table(), crystals.half, merging), facts, cell, group, merging)
    scaled = scale_blocks([block], state)
    _, _, sums = output_block(block, scaled.models[0], scaled.state)
    rows = merged_rows(sums, scaled.state)
    place = {tuple(h): i for i, h in enumerate(simulator.structure.hkl.tolist())}
    index = [place[tuple(h)] for h in rows["hkl"].tolist()]
    s = 1.0 / simulator.structure.d[index]
    mates = simulator.structure.intensity[0][:, index]
    return Found(rows, mates * _gauge(rows, mates.mean(axis=0), s), s)


def _gauge(rows: dict[str, NDArray[Any]], true: Floats, s: Floats) -> Floats:
    """Return scale · exp(B s²) that brings the truth onto the merged intensities: both are nobody's to know."""
    weight, scale, b = rows["sigma"] ** -2.0, float(np.sum(rows["intensity"] * true) / np.sum(true**2)), 0.0
    for _ in range(8):
        value = scale * np.exp(b * s**2) * true
        design = np.column_stack([value, value * s**2])
        step = np.linalg.solve(design.T @ (design * weight[:, None]), design.T @ (weight * (rows["intensity"] - value)))
        scale, b = scale * float(np.exp(step[0])), b + float(step[1])
    gauge: Floats = scale * np.exp(b * s**2)
    return gauge


def line(name: str, n: int, found: Found) -> str:
    """Return a row of the table."""
    rows, true = found.rows, found.mates.mean(axis=0)
    z2 = ((rows["intensity"] - true) / rows["sigma"]) ** 2
    bins = {
        key: [float(np.mean(z2[part])) for part in np.array_split(np.argsort(by), BINS)]
        for key, by in (("s", found.s), ("I", true))
    }
    both = (rows["n_plus"] > 0) & (rows["n_minus"] > 0) & ~rows["centric"]
    difference = (rows["intensity_plus"] - rows["intensity_minus"])[both]
    sigma = np.hypot(rows["sigma_plus"], rows["sigma_minus"])[both]
    wanted = (found.mates[0] - found.mates[1])[both]
    anomalous = float(np.mean(((difference - wanted) / sigma) ** 2))
    clear = np.abs(difference) > 3.0 * sigma
    right = f"{100 * np.mean(np.sign(difference[clear]) == np.sign(wanted[clear])):.1f} % of {np.count_nonzero(clear)}"
    halves = np.isfinite(rows["half1"]) & np.isfinite(rows["half2"])
    one, two = rows["half1"][halves], rows["half2"][halves]
    split = 100 * np.sum(np.abs(one - two)) / np.sqrt(2.0) / np.sum(0.5 * (one + two))
    cells = (
        name,
        str(n),
        f"{rows['multiplicity'].mean():.1f}",
        f"{split:.2f} % of {np.count_nonzero(halves)}",
        f"**{np.mean(z2):.2f}**",
        *(f"{min(bins[key]):.2f}-{max(bins[key]):.2f}" for key in ("s", "I")),
        f"{anomalous:.2f}",
        right if np.any(wanted) else "",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    heads = (
        "set",
        "lattices",
        "multiplicity",
        "R_split",
        "χ²",
        f"in {BINS} bins of 1/d",
        "of I",
        "χ² of I(+) - I(-)",
        "right sign of those > 3σ",
    )
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name, n, settings in SETS:
        print(line(name, n, merge(n, settings)), flush=True)


if __name__ == "__main__":
    main()
