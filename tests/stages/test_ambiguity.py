"""Tables of a unit with its lattices in other settings."""

from __future__ import annotations

import numpy as np
import pytest

from xfelproc.algorithms.merging.ambiguity_operators import DEN, find_settings
from xfelproc.geometry.cells import b_matrix
from xfelproc.models.frames import UnitResult
from xfelproc.models.tables import FrameTable, IndexedTable, LatticeTable, ReflectionTable, SpotTable
from xfelproc.stages.ambiguity import in_settings


@pytest.mark.parametrize(
    ("group", "cell"),
    [
        ("P 63", (60.0, 60.0, 90.0, 90.0, 90.0, 120.0)),
        ("C 1 2 1", (60.0 * 3**0.5, 60.0, 80.0, 90.0, 90.0, 90.0)),
        ("P 21 21 21", (50.0, 50.4, 80.0, 90.0, 90.0, 90.0)),
    ],
)
def test_points_stay_where_they_are(group: str, cell: tuple[float, ...]) -> None:
    settings, rng = find_settings(cell, group), np.random.default_rng(1)
    k = len(settings)
    n = 50 * k
    matrices = np.array([np.linalg.qr(rng.normal(size=(3, 3)))[0] @ b_matrix(cell) for _ in range(k)])
    hkl = 2 * rng.integers(-10, 11, size=(n, 3))
    lattice = np.repeat(np.arange(k), 50)
    reflections = ReflectionTable(n, lattice=lattice, hkl=hkl, intensity=rng.normal(size=n))
    lattices = LatticeTable(k, frame=np.zeros(k), A=matrices, cell=np.tile(cell, (k, 1)))
    before = UnitResult(FrameTable(1), SpotTable(0), lattices, IndexedTable(n, lattice=lattice, hkl=hkl), reflections)
    after = in_settings(before, settings.matrices, np.zeros(k, dtype=bool))

    def points(result: UnitResult) -> np.ndarray:
        table = result.reflections
        return np.einsum("nij,nj->ni", result.lattices["A"][table["lattice"]], table["hkl"])

    assert points(after) == pytest.approx(points(before), abs=1e-12)
    assert np.array_equal(after.reflections["hkl"][lattice == 0], hkl[lattice == 0])
    assert not any(np.array_equal(after.reflections["hkl"][lattice == c], hkl[lattice == c]) for c in range(1, k))
    assert np.array_equal(after.indexed["hkl"], after.reflections["hkl"])
    assert np.array_equal(after.reflections["intensity"], reflections["intensity"])
    assert after.lattices["cell"] == pytest.approx(np.tile(cell, (k, 1)), rel=0.01)
    assert np.array_equal(lattices["A"], matrices), "what was read is not changed"


def test_lattices_left_out_keep_no_reflection() -> None:
    reflections = ReflectionTable(4, lattice=[0, 0, 1, 2], hkl=np.arange(12).reshape(4, 3))
    lattices = LatticeTable(3, frame=[0, 1, 2], A=np.tile(np.eye(3), (3, 1, 1)), cell=np.ones((3, 6)))
    unit = UnitResult(FrameTable(3), SpotTable(0), lattices, IndexedTable(0), reflections)
    found = in_settings(unit, np.tile(DEN * np.eye(3, dtype=np.int64), (3, 1, 1)), np.array([True, False, False]))
    assert found.reflections["lattice"].tolist() == [1, 2]
    assert len(found.lattices) == 3
