"""Every key of section [metrology] does something: another value gives another result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.algorithms.metrology.simulated import BEAM, Errors, cspad, displaced, shots
from xfelproc.algorithms.metrology import CrystalSpots, Metrology

RECORDED = cspad(n_quadrants=1)
OTHER: dict[str, Any] = {
    "levels": (0,),
    "distance": "fixed",
    "tilts": "fixed",
    "outliers": "huber",
    "outlier_limit": 2.5,
    "sigma_floor": 0.6,
    "sigma_psi": 0.4,
    "sigma_psi_floor": 0.9,
    "prediction": "turn",
    "cell_restraint": 0.0002,
    "restraint": "none",
    "min_crystals": 1000,
    "min_crystal_spots": 45,
    "min_spots": 90,
    "max_iterations": 1,
    "tolerance": 0.9,
    "max_shift": 0.001,
}
OF_THE_RUN = {"enabled", "iterate", "max_move", "block_frames"}
"""Keys that the stage reads: tests/run/test_stage_metrology.py."""


@pytest.fixture(scope="module")
def crystals() -> list[CrystalSpots]:
    rng = np.random.default_rng(3)
    return shots(displaced(RECORDED, Errors(), rng), 25, rng, spots=(30, 60))


@pytest.fixture(scope="module")
def base(crystals: list[CrystalSpots]) -> bytes:
    return fingerprint(Metrology(), crystals)


def fingerprint(settings: Metrology, crystals: list[CrystalSpots]) -> bytes:
    state = settings.refine(RECORDED, BEAM, crystals)
    return state.detector.d_matrices.tobytes() + state.why.encode()


def test_every_key_is_here() -> None:
    assert set(Metrology.model_fields) == set(OTHER) | OF_THE_RUN


@pytest.mark.parametrize("name", OTHER)
def test_another_value_gives_another_result(crystals: list[CrystalSpots], base: bytes, name: str) -> None:
    assert fingerprint(Metrology(**{name: OTHER[name]}), crystals) != base
