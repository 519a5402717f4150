from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from xfelproc.algorithms.integration import Integrate
from xfelproc.geometry.cells import b_matrix, rotation_matrix
from xfelproc.geometry.detector import resolution_map
from xfelproc.geometry.prediction import detector_d_min
from xfelproc.models.conventions import ReflectionFlag
from xfelproc.models.experiment import Beam, Crystal, Detector, Panel, as_matrix
from xfelproc.models.frames import Frame, FrameRef, RefinedLattice
from xfelproc.models.tables import IndexedTable, SpotTable

HALVES = Detector(
    (
        Panel("upper", (1, 0, 0), (0, -1, 0), (-37.5, 37.5, -80.0), (0.075, 0.075), (1000, 480)),
        Panel("lower", (1, 0, 0), (0, -1, 0), (-37.5, 0.0, -80.0), (0.075, 0.075), (1000, 500)),
    )
)
BEAM = Beam(1.3)


def lattice(seed: int, n_observed: int = 30) -> RefinedLattice:
    rng = np.random.default_rng(seed)
    a = rotation_matrix(rng.normal(size=3)) @ b_matrix((79.1, 79.1, 38.0, 90, 90, 90))
    crystal = Crystal(as_matrix(a), "P 43 21 2", 1000.0, 0.02)
    predicted = Integrate().predict(crystal, HALVES, BEAM, 2.4)
    hkl = predicted["hkl"][rng.choice(len(predicted), n_observed, replace=False)]
    return RefinedLattice(crystal, HALVES, (0, 0, 0), IndexedTable(n_observed, hkl=hkl), 0.2, 0.1, True)


def frame_of(
    lattices: list[RefinedLattice], level: float = 4.0, height: float = 25.0
) -> tuple[Frame, dict[tuple[int, ...], float]]:
    """Return a frame with 3 x 3 blocks of ``height`` x partiality at each prediction of the default resolution."""
    rng = np.random.default_rng(0)
    mean = np.full(HALVES.stack_shape, level)
    truth = {}
    for number, one in enumerate(lattices):
        table = Integrate().predict(one.crystal, HALVES, BEAM, detector_d_min(HALVES, BEAM))
        for row in range(len(table)):
            p, i, j = int(table["panel"][row]), int(table["fast"][row]), int(table["slow"][row])
            if 2 < i < 997 and 2 < j < HALVES.image_sizes[p, 1] - 3:
                mean[p, j - 1 : j + 2, i - 1 : i + 2] += height * table["partiality"][row]
                truth[(number, *table["hkl"][row].tolist())] = 9 * height * float(table["partiality"][row])
    pixels = rng.poisson(mean).astype(np.uint16)
    mask = np.zeros(pixels.shape, dtype=np.uint8)
    mask[0, 480:] = 128
    return Frame(FrameRef(0, 0), pixels, mask, np.tile([-0.5, 60000.0], (2, 1)), HALVES, BEAM), truth


def test_two_lattices_of_a_frame() -> None:
    lattices = [lattice(1), lattice(2)]
    frame, truth = frame_of(lattices)
    discs = Integrate(widths=0.0, radius=3.0, background_inner=5.0, background_outer=8.0)
    result = discs.integrate(frame, lattices, SpotTable(0))
    table = result.reflections
    assert set(table["lattice"]) == {0, 1}
    assert len(result.crystals) == len(result.d_min) == 2
    good = (table["flags"] & ReflectionFlag.INTEGRATED > 0) & (table["flags"] & ReflectionFlag.OVERLAP == 0)
    assert good.mean() > 0.8
    expected = np.array([truth.get((n, *h), np.nan) for n, h in zip(table["lattice"], table["hkl"].tolist(), strict=True)])
    pull = ((table["intensity"] - expected) / table["sigma"])[good & np.isfinite(expected)]
    assert len(pull) > 200
    assert abs(pull.mean()) < 0.15
    assert 0.9 < pull.std() < 1.15
    for number, one in enumerate(lattices):
        rows = table["lattice"] == number
        observed = {tuple(h) for h in table["hkl"][rows & (table["flags"] & ReflectionFlag.OBSERVED > 0)].tolist()}
        assert observed == {tuple(h) for h in one.indexed["hkl"].tolist()}
    fast, slow, panel = table["fast"], table["slow"], table["panel"]
    distance = np.hypot(fast[:, None] - fast, slow[:, None] - slow) + 1e3 * (panel[:, None] != panel) + 1e3 * np.eye(len(table))
    assert np.array_equal(table["flags"] & ReflectionFlag.OVERLAP > 0, distance.min(axis=1) < 6.0)


def test_resolution() -> None:
    one = lattice(3)
    frame, _ = frame_of([one])
    own = Integrate(resolution_push=0.05).integrate(frame, [one], SpotTable(0))
    length = np.linalg.norm(one.indexed["hkl"] @ one.crystal.a_matrix.T, axis=1)
    assert 1 / own.d_min[0] <= np.percentile(length, 98) + 0.05
    assert own.reflections["d"].min() == pytest.approx(own.d_min[0])
    given = Integrate(d_min=3.0, d_max=15.0).integrate(frame, [one], SpotTable(0)).reflections
    assert given["d"].min() >= 3.0
    assert given["d"].max() <= 15.0


def test_corner_resolution() -> None:
    beam = Beam(1.3)
    assert detector_d_min(HALVES, beam) == pytest.approx(float(resolution_map(HALVES, beam)[1].min()), rel=1e-3)


def test_nothing_to_integrate() -> None:
    frame, _ = frame_of([])
    result = Integrate().integrate(frame, [], SpotTable(0))
    assert len(result.reflections) == 0
    assert result.crystals == ()


def test_parameters() -> None:
    with pytest.raises(ValidationError, match="background_inner"):
        Integrate(radius=6.0)
