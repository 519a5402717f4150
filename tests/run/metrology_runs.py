"""Runs whose detector is not where it is recorded: lists of spots seen on the true one, and a refinement of a few lines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.algorithms.indexing.generator import basis_of, random_rotation
from tests.run.spot_lists import SpotRun, run_spots
from xfelproc.algorithms.integration import Integrate
from xfelproc.algorithms.metrology import CrystalSpots
from xfelproc.geometry.prediction import predict_indices, predict_still
from xfelproc.io.nodes import Partial
from xfelproc.models.experiment import Beam, Crystal, Detector, Panel, as_matrix, as_vector
from xfelproc.models.frames import CellTarget
from xfelproc.models.parameters import Parameters
from xfelproc.models.tables import SpotTable

CELL = (79.1, 79.1, 38.0, 90.0, 90.0, 90.0)
TARGET = CellTarget(CELL, "P 43 21 2")
BEAM = Beam(1.305)
SIZE, PIXEL = 200, 0.3


def recorded() -> Detector:
    """Two by two panels of 200 x 200 pixels of 0.3 mm, 92.5 mm away."""
    panels = []
    for row in (0, 1):
        for column in (0, 1):
            origin = (-61.0 + 62.0 * column, 61.0 - 62.0 * row, -92.5)
            panels.append(Panel(f"p{len(panels)}", (1, 0, 0), (0, -1, 0), origin, (PIXEL, PIXEL), (SIZE, SIZE)))
    return Detector(tuple(panels))


def displaced(detector: Detector, size: float = 0.8, seed: int = 5) -> Detector:
    """Panels moved in their plane by about ``size`` pixels each, their mean nowhere."""
    moves = np.random.default_rng(seed).normal(scale=size * PIXEL, size=(len(detector), 2))
    moves -= moves.mean(axis=0)
    panels = [replace(p, origin=as_vector(np.add(p.origin, [*m, 0.0]))) for p, m in zip(detector.panels, moves, strict=True)]
    return Detector(tuple(panels))


def shots(n: int, detector: Detector, seed: int = 1, noise: float = 0.05) -> list[SpotTable]:
    """Spots of crystals in random orientation, on a detector."""
    rng = np.random.default_rng(seed)
    return [shot(detector, rng, noise) for _ in range(n)]


def shot(detector: Detector, rng: np.random.Generator, noise: float) -> SpotTable:
    a = np.linalg.inv(basis_of(CELL) @ random_rotation(rng).T)
    found = predict_still(Crystal(as_matrix(a), "P 43 21 2", 3000.0, 0.02), detector, BEAM, 2.2)
    chosen = np.sort(rng.choice(len(found), min(len(found), 70), replace=False))
    n, order = len(chosen), rng.permutation(len(chosen))
    place = np.column_stack([found["fast"], found["slow"]])[chosen][order] + rng.normal(scale=noise, size=(n, 2))
    snr = (60 / (1 + 0.2 * np.arange(n)) + 4)[rng.permutation(n)]
    variance = np.full(n, noise**2)
    return SpotTable(
        n,
        panel=found["panel"][chosen][order],
        fast=place[:, 0],
        slow=place[:, 1],
        snr=snr,
        intensity=10 * snr,
        var_fast=variance,
        var_slow=variance,
    )


def blanks(n: int) -> list[SpotTable]:
    return [SpotTable(0) for _ in range(n)]


@dataclass(frozen=True)
class State:
    detector: Detector
    iteration: int = 0
    finished: bool = False
    converged: bool = False
    why: str = ""
    significance: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        return self.converged


class MeanResidual(Parameters):
    """Moves each panel by the mean of its residuals, three times."""

    enabled: bool = True
    iterate: int = 1
    block_frames: int = 0
    max_move: float = 0.1
    min_crystals: int = 3
    gain: float = 1.0
    fails: str = ""

    def begin(self, detector: Detector, beam: Beam, origin: Detector | None = None) -> State:
        return State(detector)

    def accumulate(self, state: State, crystals: Iterable[CrystalSpots]) -> Partial:
        sums = np.zeros((len(state.detector), 3))
        n = 0
        for c in crystals:
            n += 1
            lattice = Crystal(as_matrix(c.A), c.space_group)
            predicted = predict_indices(lattice, state.detector, Beam(c.wavelength), c.hkl, c.panel)
            np.add.at(sums, c.panel, np.column_stack([c.fast - predicted[:, 0], c.slow - predicted[:, 1], np.ones(len(c.panel))]))
        return {"sums": sums, "crystals": np.array([n])}

    def combine(self, first: Partial, second: Partial) -> Partial:
        return {name: first[name] + second[name] for name in first}

    def advance(self, state: State, partial: Partial) -> State:
        if partial["crystals"][0] < self.min_crystals:
            return replace(state, finished=True, why=f"{partial['crystals'][0]} lattices are too few")
        if self.fails:
            return replace(state, finished=True, why=self.fails)
        sums = partial["sums"]
        mean = self.gain * sums[:, :2] / np.maximum(sums[:, 2:], 1.0)
        panels = []
        for panel, (fast, slow) in zip(state.detector.panels, mean * PIXEL, strict=True):
            move = fast * np.asarray(panel.fast_axis) + slow * np.asarray(panel.slow_axis)
            panels.append(replace(panel, origin=as_vector(np.asarray(panel.origin) - move)))
        notes = tuple(f"panel {n} has no spots" for n in np.flatnonzero(sums[:, 2] == 0))
        iteration, size = state.iteration + 1, float(np.sqrt(np.mean(mean**2)))
        return State(Detector(tuple(panels)), iteration, iteration == 2, True, "", max(state.significance, size / 0.01), notes)


def run_metrology(lists: list[SpotTable], folder: Path, detector: Detector | None = None, **sections: Any) -> SpotRun:
    """Run processing and metrology over lists of spots."""
    models = {"integrate": Integrate, "metrology": sections.pop("model", MeanResidual)}
    sections.setdefault("integrate", {"d_min": 4.0})
    sections.setdefault("execution", {"unit_size": 4, "fold_size": 8})
    only = sections.pop("only", "process,metrology")
    return run_spots(lists, detector or recorded(), BEAM, TARGET, folder, only, models, **sections)
