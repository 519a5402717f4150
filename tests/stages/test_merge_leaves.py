"""Leaves of merging, from shards: what they hold, and that their cut makes no difference to what is learnt of all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.run.synthetic_shards import gathering, make_shards
from xfelproc.algorithms.merging import Merge, prepare
from xfelproc.algorithms.merging.sample import Sample
from xfelproc.io.columns import read_columns
from xfelproc.io.nodes import Partial
from xfelproc.io.shards import read_shard, shard_path
from xfelproc.models.tables import ReflectionTable
from xfelproc.run.folding import read_partial
from xfelproc.run.merging import FoundShards, MergeInput
from xfelproc.stages.fold import cut_leaves
from xfelproc.stages.merge_leaves import Leaves
from xfelproc.stages.merge_parts import MergeJob


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> MergeInput:
    return make_shards(tmp_path_factory.mktemp("shards"), 30, 100, 4, d_min=5.0)


def leaves_of(folder: Path, run: MergeInput, size: int, share: float = 1.0) -> tuple[Partial, list[Partial]]:
    place, found = gathering(folder), FoundShards.of([run])
    job = MergeJob(Merge(), "P 43 21 2", "lineage", place.directory.gather / "merge")
    offsets = cut_leaves(found.frames, size)
    root = read_partial(place.fold(Leaves(job, share, share), "merge/leaves", 0, found.blocks, offsets))
    assert root["first"].tolist() == list(offsets[:-1])
    return root, [read_columns(job.leaf(first), job.hash("leaf", first)) for first in offsets[:-1]]


@pytest.fixture(scope="module")
def whole(run: MergeInput, tmp_path_factory: pytest.TempPathFactory) -> tuple[Partial, Partial]:
    root, (leaf,) = leaves_of(tmp_path_factory.mktemp("whole"), run, 1000)
    return root, leaf


def test_leaves_hold_the_observations(run: MergeInput, whole: tuple[Partial, Partial]) -> None:
    _, leaf = whole
    shards = [read_shard(shard_path(run.run, "process", unit)) for unit in range(run.n_units)]
    tables = [s.reflections.replace(lattice=s.reflections["lattice"] + 4 * i) for i, s in enumerate(shards)]
    expected = prepare(ReflectionTable.concatenate(tables), leaf["half"], Merge())
    assert np.array_equal(np.repeat(np.arange(30), np.diff(leaf["starts"])), expected.lattice)
    for name in ("hkl", "intensity", "variance_fixed", "variance_gain", "excitation", "polarization", "flags"):
        assert leaf[name] == pytest.approx(getattr(expected, name), rel=1e-6), name
    assert leaf["unit"].tolist() == [i // 4 for i in range(30)]
    assert leaf["number"].tolist() == [i % 4 for i in range(30)]
    assert np.array_equal(leaf["cell"], np.concatenate([s.lattices["cell"] for s in shards]))


@pytest.mark.parametrize("size", [4, 9])
def test_the_cut_makes_no_difference(run: MergeInput, whole: tuple[Partial, Partial], tmp_path: Path, size: int) -> None:
    root, parts = leaves_of(tmp_path, run, size)
    assert len(parts) > 2
    for name in ("keys", "counts", "cells", "cells_priority", "absences", *Sample.from_arrays(root).arrays()):
        assert np.array_equal(root[name], whole[0][name]), name
    for name in ("n_lattices", "n_observations"):
        assert root[name].sum() == whole[0][name][0]
    for name in whole[1]:
        if name != "starts":
            assert np.array_equal(np.concatenate([p[name] for p in parts]), whole[1][name]), name


def test_only_likely_lattices_are_sampled(run: MergeInput, whole: tuple[Partial, Partial], tmp_path: Path) -> None:
    root, _ = leaves_of(tmp_path, run, 8, share=0.5)
    likely = whole[0]["sample_priority"] < np.uint64(1 << 63)
    assert 0 < np.count_nonzero(likely) < 30
    assert np.array_equal(root["sample_priority"], whole[0]["sample_priority"][likely])
    assert np.array_equal(root["cells_priority"], root["sample_priority"])
    assert np.array_equal(root["keys"], whole[0]["keys"])
