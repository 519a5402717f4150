"""Shards read in the settings that a merging found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.run.synthetic_shards import make_shards
from xfelproc.algorithms.merging.ambiguity_operators import DEN
from xfelproc.errors import DataError
from xfelproc.io.shards import read_shard
from xfelproc.io.store import to_bytes
from xfelproc.models.tables import SettingTable
from xfelproc.stages.fold import Shards
from xfelproc.stages.resolved import ResolvedShards

MATRICES = DEN * np.array([np.eye(3), [[0, 1, 0], [1, 0, 0], [0, 0, -1]]], dtype=np.int64)


def shards(folder: Path, settings: list[int], stamp: str = "x") -> ResolvedShards:
    run = make_shards(folder, 4, 20, 2, d_min=4.0)
    table = SettingTable(4, unit=[0, 0, 1, 1], lattice=[0, 1, 0, 1], setting=settings, operator=np.full(4, "h,k,l"))
    (folder / "settings.h5").write_bytes(to_bytes({"matrices": MATRICES}, {"lattices": table}, {}))
    return ResolvedShards(run.stage, ((run.run, run.n_units),), folder / "settings.h5", stamp)


def test_lattices_are_in_the_settings_of_the_file(tmp_path: Path) -> None:
    found = shards(tmp_path, [0, 0, 0, 1])
    for unit, moved in ((0, [False, False]), (1, [False, True])):
        before, after = read_shard(found.path(unit)[3]), found.open(unit).result()
        lattice = before.reflections["lattice"]
        other = np.array(moved)[lattice]
        assert np.array_equal(after.reflections["hkl"][~other], before.reflections["hkl"][~other])
        assert np.array_equal(after.reflections["hkl"][other], before.reflections["hkl"][other][:, [1, 0, 2]] * [1, 1, -1])
        points = [np.einsum("nij,nj->ni", t.lattices["A"][lattice], t.reflections["hkl"]) for t in (before, after)]
        np.testing.assert_allclose(*points, atol=1e-12)
        assert np.array_equal(found.open(unit).lattices()["A"], after.lattices["A"])
    plain = Shards(found.stage, found.runs)
    assert found.lineage(0) != plain.lineage(0)


def test_a_setting_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 2 settings, but a lattice is in number 2"):
        shards(tmp_path, [0, 2, 0, 1], "y").open(0)
