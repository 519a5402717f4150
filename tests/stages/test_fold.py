from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.stages.folds import Numbers, Sum
from xfelproc.errors import ConfigError
from xfelproc.io.nodes import Partial, node_path, read_node
from xfelproc.stages.fold import FoldJob, Shards, combine_all, compute_node, cut_leaves, make_nodes

sizes = st.lists(st.integers(0, 300), max_size=60)
numbers = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40)


@given(sizes, st.none() | st.integers(1, 500))
def test_leaves_cover_all_blocks_in_order(blocks: list[int], leaf_size: int | None) -> None:
    offsets = cut_leaves(blocks, leaf_size)
    assert offsets[0] == 0
    assert offsets[-1] == len(blocks)
    assert list(offsets) == sorted(offsets)
    assert all(a < b for a, b in itertools.pairwise(offsets)) or not blocks


def test_leaves_are_of_the_size_asked_for() -> None:
    assert cut_leaves([8] * 6) == (0, 6)
    assert cut_leaves([100] * 30) == (0, 10, 20, 30)
    assert cut_leaves([100] * 30, 500) == (0, 5, 10, 15, 20, 25, 30)
    assert len(cut_leaves([500] * 20_000)) == 257
    assert cut_leaves([]) == (0, 0)


def compute_all(folder: Path, values: list[float], offsets: tuple[int, ...], shuffle: random.Random) -> Path:
    """Compute the nodes level by level, each level in a random order."""
    task = make_nodes(FoldJob(folder, "sum", folder / "gather", Sum(), Numbers(tuple(values)), offsets))
    lineages, level = [""] * (len(offsets) - 1), 0
    children: list[tuple[str, ...]] = [()] * len(lineages)
    while True:
        order = list(range(len(children)))
        shuffle.shuffle(order)
        lineages = [""] * len(children)
        for node in order:
            lineages[node] = compute_node(task(level, node, children[node])).lineage
        if len(lineages) == 1:
            return node_path(folder / "gather", level, 0)
        level += 4
        children = [tuple(lineages[i : i + 16]) for i in range(0, len(lineages), 16)]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers, st.integers(1, 5), st.randoms(use_true_random=False))
def test_bytes_do_not_depend_on_order(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], width: int, shuffle: random.Random
) -> None:
    offsets = (*range(0, len(values), width), len(values))
    one, two = (compute_all(tmp_path_factory.mktemp("fold"), values, offsets, shuffle) for _ in range(2))
    assert one.read_bytes() == two.read_bytes()
    partial = read_node(one)[1]
    assert partial["seen"].tolist() == values
    leaves = [Sum().accumulate(values[a:b]) for a, b in itertools.pairwise(offsets)]
    assert partial["total"] == combine_all(Sum(), leaves)["total"], "levels in a task change nothing"


class Written:
    """A fold that writes down what it does, and how much was alive at a time."""

    lineage = ""

    def __init__(self) -> None:
        self.alive = self.most = 0

    def accumulate(self, blocks: Iterable[int]) -> Partial:
        self.alive += 1
        self.most = max(self.most, self.alive)
        return {"text": np.array(str(next(iter(blocks))))}

    def combine(self, first: Partial, second: Partial) -> Partial:
        self.alive -= 1
        return {"text": np.array(f"({first['text']} {second['text']})")}


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 11, 16, 37])
def test_partials_are_combined_level_by_level_with_few_in_memory(n: int) -> None:
    row = [str(i) for i in range(n)]
    while len(row) > 1:
        row = [f"({row[i]} {row[i + 1]})" for i in range(0, len(row) - 1, 2)] + row[len(row) - len(row) % 2 :]
    fold = Written()
    assert combine_all(fold, (fold.accumulate([i]) for i in range(n)))["text"] == row[0]
    assert fold.most <= np.log2(n) + 2


def test_node_of_equal_lineage_is_kept(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    for values in ((1.0, 2.0, 3.0), (1.0, 2.0, 4.0)):
        for _ in range(2):
            task = make_nodes(FoldJob(tmp_path, "sum", tmp_path / "gather", Sum(), Numbers(values, notes), (0, 2, 3)))
            for node in range(2):
                compute_node(task(0, node, ()))
    assert {p.name: len(p.read_text().split()) for p in notes.iterdir()} == {"0": 1, "1": 1, "2": 2}


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_damaged_node_is_computed_again(tmp_path: Path, damage: str) -> None:
    values = tuple(np.random.default_rng(0).normal(size=4000))
    task = make_nodes(FoldJob(tmp_path, "sum", tmp_path / "gather", Sum(), Numbers(values), (0, 4000)))
    compute_node(task(0, 0, ()))
    path = node_path(tmp_path / "gather", 0, 0)
    content = bytearray(path.read_bytes())
    content[len(content) - 4000] ^= 1
    path.write_bytes(bytes(content) if damage == "flip" else bytes(content[:2000]))
    compute_node(task(0, 0, ()))
    assert read_node(path)[1]["seen"].tolist() == list(values)


def test_unit_not_done(tmp_path: Path) -> None:
    shards = Shards("process", ((tmp_path / "a", 2), (tmp_path / "b", 3)))
    assert [shards.place(i) for i in range(5)] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    with pytest.raises(IndexError):
        shards.place(5)
    with pytest.raises(ConfigError, match="unit 1 of stage process is not processed"):
        shards.lineage(3)
