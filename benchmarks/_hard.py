"""Hard frames by the simulator, and spots of nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from _truth import Chain, Report, Tally, simulated_frame

from tests.run.spot_lists import run_spots
from xfelproc.algorithms.indexing import Index
from xfelproc.geometry.detector import pixel_to_q
from xfelproc.models.experiment import Beam, Detector
from xfelproc.models.frames import CellTarget
from xfelproc.models.tables import SpotTable
from xfelproc.simulation import SimulationSettings, Simulator, preset
from xfelproc.simulation.experiment import recorded_shift


@dataclass(frozen=True)
class Case:
    """Frames of a kind; only those whose number of spots found is in ``spots`` count, until there are ``frames`` of them."""

    name: str
    settings: SimulationSettings
    required: float
    spots: tuple[int, int] = (15, 100_000)
    frames: int = 100
    cell_known: bool = True
    figure: str = "5"


def cases(frames: int, seed: int = 11) -> list[Case]:
    """Return the sets of figure 5, and other lattices."""

    def make(name: str, **changes: Any) -> SimulationSettings:
        return preset(name, seed=seed, **changes)

    none: dict[str, Any] = {"cell_known": False, "spots": (40, 100_000)}
    listed = [
        Case("11-30 spots", make("weak"), 0.90, (11, 30)),
        Case("11-30 spots, 5 % spurious", make("weak", false_peaks=0.05), 0.90, (11, 30)),
        Case("one lattice", make("single"), 0.95),
        Case("ice rings", make("ice"), 0.95),
        Case("ice rings, weak", make("ice", photons=300.0), 0.95),
        Case("5 % spurious peaks", make("false_peaks"), 0.95),
        Case("50 % spurious peaks", make("false_peaks", false_peaks=0.5), 0.95),
        Case("cell off by 1 %", make("cell_off", photons=1000.0), 0.95),
        Case("cell off by -1 %", make("cell_off", photons=1000.0, cell_error=-0.01), 0.95),
        Case("beam centre off by 0.25 of the spot spacing", make("centre_off", photons=1000.0), 0.95),
        Case("two lattices", make("two_lattices"), 0.95),
        Case("two lattices, weak", make("two_lattices", photons=400.0), 0.95),
        Case("three lattices", make("three_lattices"), 0.90),
        Case("three lattices, weak", make("three_lattices", photons=400.0), 0.90),
        Case("no cell given, at least 40 spots", make("no_cell", photons=600.0), 0.95, **none),
        Case("no cell given, 5 % spurious", make("no_cell", photons=600.0, false_peaks=0.05), 0.95, **none),
        Case("no cell given, ice rings", make("ice"), 0.95, **none),
    ]
    return [replace(case, frames=frames) for case in listed + _lattices(make)]


def _lattices(make: Any) -> list[Case]:
    """Return cases of other lattices than the presets' tetragonal one."""
    listed = [
        ("P 1 21 1", (45.0, 60.0, 70.0, 90.0, 106.0, 90.0), 1.0),
        ("C 2 2 21", (61.4, 122.6, 168.0, 90.0, 90.0, 90.0), 3.0),
        ("P 61 2 2", (92.9, 92.9, 130.4, 90.0, 90.0, 120.0), 3.0),
        ("P 1", (40.0, 52.0, 63.0, 82.0, 75.0, 98.0), 1.0),
        ("I 2 3", (78.0, 78.0, 78.0, 90.0, 90.0, 90.0), 1.0),
        ("R 3 2:H", (107.0, 107.0, 138.0, 90.0, 90.0, 120.0), 3.0),
    ]
    found = []
    for group, cell, brighter in listed:
        crystal = {"cell": cell, "space_group": group, "d_min": 2.5}
        settings = make("single", crystal=crystal, photons=1000.0 * brighter)
        found.append(Case(f"{group}, cell given", settings, 0.95, figure="-"))
        found.append(Case(f"{group}, no cell given", settings, 0.95, (40, 100_000), cell_known=False, figure="-"))
    return found


def chain_of(case: Case) -> Chain:
    """Return the sections that a job would have for a case."""
    settings = case.settings
    factor = 1.0 + settings.cell_error
    a, b, c, *angles = settings.crystal.cell
    cell = (a * factor, b * factor, c * factor, angles[0], angles[1], angles[2])
    target = CellTarget(cell, settings.crystal.space_group) if case.cell_known else CellTarget()
    return Chain(target, index=Index(max_lattices=settings.lattices))


def run_case(case: Case) -> Tally:
    """Process a case's frames."""
    simulator, chain, tally = Simulator(case.settings), chain_of(case), Tally()
    x, y, z = recorded_shift(case.settings)
    recorded = simulator.layout.detector.shifted((-x, -y, -z))
    for index in range(20 * case.frames):
        frame, truths = simulated_frame(simulator, index)
        outcome = chain.frame(replace(frame, detector=recorded))
        if case.spots[0] <= len(outcome.spots) <= case.spots[1]:
            tally.count(f"{case.name}, frame {index}", outcome, truths, case.settings.crystal.space_group)
        if tally.frames == case.frames:
            break
    return tally


def hard(quick: bool, only: str = "", seed: int = 11) -> Report:
    """Measure figure 5 on simulated frames."""
    report = Report("Hard frames")
    right = wrong = 0
    for case in cases(20 if quick else 100, seed):
        if only not in case.name:
            continue
        tally = run_case(case)
        right, wrong = right + tally.right, wrong + tally.wrong
        what = f"{case.name} ({tally.frames} frames)"
        report.add(case.figure, what, f"≥ {100 * case.required:.0f} %", tally.words(), tally.share >= case.required)
        report.notes += tally.failures[:6]
        print(report.rows[-1].what, report.rows[-1].measured, flush=True)
    share = wrong / max(1, right + wrong)
    report.add("5", "wrong lattices of those reported", "≤ 1 %", f"{wrong} of {right + wrong}", share <= 0.01)
    return report


def random_spots(frames: int) -> Iterator[tuple[int, SpotTable]]:
    """Make spot lists of 15-200 peaks, uniform over a detector of 2000 x 2000 pixels."""
    rng = np.random.default_rng(20)
    for index in range(frames):
        n = int(rng.integers(15, 201))
        intensity = 100.0 + rng.exponential(500.0, n)
        position = rng.uniform(0, 2000, (n, 2))
        yield (
            index,
            SpotTable(
                fast=position[:, 0],
                slow=position[:, 1],
                var_fast=np.full(n, 0.04),
                var_slow=np.full(n, 0.04),
                intensity=intensity,
                snr=intensity / np.sqrt(intensity + 60.0),
                background=np.full(n, 3.0),
                peak=0.3 * intensity,
                n_pixels=np.full(n, 6),
            ),
        )


def random(quick: bool) -> Report:
    """Count lattices in spots that belong to none."""
    report = Report("Random peaks")
    simulator = Simulator(preset("large"))
    detector, beam = simulator.layout.detector, Beam(1.305, bandwidth=0.002)
    settings = simulator.settings.crystal
    frames = 200 if quick else 2000
    for name, target in (("cell given", CellTarget(settings.cell, settings.space_group)), ("no cell given", CellTarget())):
        chain = Chain(target)
        indexed = accepted = 0
        for index, spots in random_spots(frames):
            q = pixel_to_q(detector, beam, spots["panel"], spots["fast"], spots["slow"])
            outcome = chain.index_spots(spots.replace(d=1.0 / np.linalg.norm(q, axis=1)), detector, beam)
            indexed += outcome.n_indexed > 0
            if outcome.lattices:
                accepted += 1
                lattice = outcome.lattices[0]
                cell = " ".join(f"{v:.1f}" for v in lattice.crystal.cell)
                n = len(lattice.indexed)
                report.notes.append(f"{name}, frame {index}: {n} of {len(spots)} spots by {cell}, log10 p {lattice.log10_p:.1f}")
        measured = f"{accepted} of {frames} ({indexed} before refinement)"
        report.add("5", f"frames of 15-200 random peaks indexed, {name}", "≤ 2 of 2000", measured, accepted <= 2)
        print(name, measured, flush=True)
    random_runs(report, frames, detector, beam, CellTarget(settings.cell, settings.space_group))
    return report


def random_runs(report: Report, frames: int, detector: Detector, beam: Beam, target: CellTarget) -> None:
    """Make runs of 20-50 frames of random peaks, and count those that find a distance of the detector."""
    lists = []
    for _, spots in random_spots(frames):
        q = pixel_to_q(detector, beam, spots["panel"], spots["fast"], spots["slow"])
        lists.append(spots.replace(d=1.0 / np.linalg.norm(q, axis=1)))
    rng, runs, found, indexed, tried = np.random.default_rng(21), 0, 0, 0, 0
    while lists:
        size = int(rng.integers(20, 51))
        with TemporaryDirectory() as folder:
            result = run_spots(lists[:size], detector, beam, target, Path(folder))
        runs, found, lists = runs + 1, found + (result.distance is not None), lists[size:]
        indexed, tried = indexed + (result.record or {}).get("indexed", 0), tried + (result.record or {}).get("frames", 0)
        if result.record is not None and result.record["agreeing"]:
            report.notes.append(f"run {runs} of random peaks: {result.record}")
    measured = f"{found} of {runs} ({frames} frames; of {tried} sampled {indexed} had a lattice at some distance)"
    report.add("5", "runs of 20-50 frames of random peaks that find a distance", "0", measured, found == 0)
    print("distance", measured, flush=True)
