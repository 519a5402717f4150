from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.integration.conftest import environment
from tests.run.sessions import fake_session
from tests.run.test_run import job, run
from xfelproc.io.nodes import Partial, read_node, write_node
from xfelproc.io.shards import UnitImages
from xfelproc.models.conventions import FrameStatus
from xfelproc.models.experiment import Detector, Panel
from xfelproc.models.frames import UnitResult
from xfelproc.models.tables import FrameTable, IndexedTable, LatticeTable, ReflectionTable, SpotTable
from xfelproc.report import fold as module
from xfelproc.report.fold import ReportFold, median_time, unpacked
from xfelproc.report.summary import RunSummary

DETECTOR = Detector((Panel("p", (1, 0, 0), (0, -1, 0), (-10.0, 10.0, -100.0), (0.1, 0.1), (200, 200)),))
FLOATS = ("residuals", "image_total")


def unit(number: int, n: int = 20) -> UnitResult:
    rng = np.random.default_rng(number)
    status = rng.integers(0, 5, n).astype(np.uint8)
    rows = np.flatnonzero(status >= FrameStatus.INDEXED)
    reason = np.array([f"found {rng.integers(3)} spots" if s < FrameStatus.INDEXED else "" for s in status], object)
    frames = FrameTable(
        n, status=status, reason=reason, n_spots=rng.integers(0, 300, n), index=np.arange(n), times=rng.exponential(3, (n, 6))
    )
    m = len(rows)
    explained, cell = rng.integers(5, 300, m), rng.normal(80, 1, (m, 6))
    lattices = LatticeTable(m, frame=rows, cell=cell, n_indexed=explained, rmsd=rng.random(m))
    spots = SpotTable(50, fast=rng.uniform(0, 200, 50), slow=rng.uniform(0, 200, 50), frame=rng.integers(0, n, 50))
    indexed = IndexedTable(
        30, spot=np.arange(30), fast_calc=spots["fast"][:30] + rng.normal(0, 1, 30), slow_calc=spots["slow"][:30]
    )
    return UnitResult(frames, spots, lattices, indexed, ReflectionTable(7))


def picture(number: int) -> UnitImages | None:
    rng = np.random.default_rng(number)
    image: NDArray[Any] = rng.random((1, 20, 20), dtype=np.float32)
    return UnitImages(image, image, 20, 10) if number % 3 == 0 else None


def assert_equal(first: Partial, second: Partial) -> None:
    assert first.keys() == second.keys()
    for name, values in first.items():
        if name in FLOATS:
            np.testing.assert_allclose(values, second[name], rtol=1e-12)
        else:
            np.testing.assert_array_equal(values, second[name], err_msg=name)


@pytest.mark.parametrize("sample", [10, 10_000])
def test_order_and_grouping_do_not_matter(monkeypatch: pytest.MonkeyPatch, sample: int) -> None:
    monkeypatch.setattr(module, "SAMPLE", sample)
    fold = ReportFold(DETECTOR, 12)
    parts = [fold.of_unit(number, unit(number), picture(number)) for number in range(12)]
    whole = fold.empty()
    for part in parts:
        whole = fold.combine(whole, part)
    shuffled = parts.copy()
    random.Random(3).shuffle(shuffled)
    while len(shuffled) > 1:
        shuffled = [fold.combine(*shuffled[:2]), *shuffled[2:]][::-1]
    assert_equal(whole, shuffled[0])


def test_size_does_not_grow_with_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLE", 1000)

    def size(n_units: int) -> int:
        fold = ReportFold(DETECTOR, n_units)
        partial = fold.empty()
        for number in range(n_units):
            partial = fold.combine(partial, fold.of_unit(number, unit(number % 5, 500)))
        return sum(values.nbytes for values in partial.values())

    assert size(60) <= size(40) + 50 * 5 * 8
    assert size(60) < 3_000_000


def test_selection_is_that_of_all_frames() -> None:
    fold, units = ReportFold(DETECTOR, 12), [unit(number) for number in range(12)]
    partial = fold.empty()
    for number, result in enumerate(units):
        partial = fold.combine(partial, fold.of_unit(number, result))
    summary = RunSummary(fold, partial, np.arange(13) * 20)
    scored = []
    for number, result in enumerate(units):
        explained = np.zeros(20, int)
        np.add.at(explained, result.lattices["frame"], result.lattices["n_indexed"])
        scored += [(int(explained[row]), number, row) for row in np.flatnonzero(result.frames["status"] >= FrameStatus.INDEXED)]
    values = sorted(score for score, _, _ in scored)
    chosen = {label: (number, row) for label, number, row in summary.chosen_frames()}
    for label, value in (("best", values[-1]), ("median", values[len(values) // 2]), ("worst", values[0])):
        first = min((number, row) for score, number, row in scored if score == value)
        assert chosen[label] == first, label
    times = np.concatenate([u.frames["times"][u.frames["status"] >= FrameStatus.HIT] for u in units])
    assert summary.typical_times()["hit"] == pytest.approx(np.median(times, axis=0), rel=0.03)
    assert len(summary.cells) == summary.n_lattices == sum(len(u.lattices) for u in units)


def test_median_of_counted_times() -> None:
    counts = np.bincount(module._time_bins(np.array([0.0, 0.0, 5.0, 5.0, 5.0, 1e9])), minlength=module.TIMES)
    assert median_time(counts) == pytest.approx(5.0, rel=0.02)
    assert median_time(np.zeros(10, np.int64)) == 0.0


def test_many_different_reasons_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REASONS", 3)
    fold, partial = ReportFold(DETECTOR, 10), ReportFold(DETECTOR, 10).empty()
    for number in range(10):
        table = FrameTable(status=[0, 0], reason=["common", "rare " + "x" * number])
        result = UnitResult(table, SpotTable(), LatticeTable(), IndexedTable(), ReflectionTable())
        partial = fold.combine(partial, fold.of_unit(number, result))
    rows = unpacked(partial["reasons"])
    assert len(rows) == 4
    assert rows[0][:2] == ["common", 10]
    assert sum(row[1] for row in rows) == 20
    assert rows[-1][0] == "other reasons"


def test_partial_survives_the_file(tmp_path: Any) -> None:
    fold = ReportFold(DETECTOR, 2)
    for number, partial in enumerate((fold.empty(), fold.of_unit(0, unit(0), picture(0)))):
        write_node(tmp_path / f"{number}.h5", "x", partial)
        assert_equal(read_node(tmp_path / f"{number}.h5")[1], partial)


def test_fold_by_workers_equals_fold_here(tmp_path: Any) -> None:
    """The report's numbers on the driver pool, cut into several leaves, are those of one pass."""
    run(job(tmp_path, ["hit", "blank", "truncated", *["hit"] * 37]), tmp_path / "out")
    results = []
    for driver, size in (("inline", None), ("pool", 8)):
        with fake_session(tmp_path, ["hit", "blank", "truncated", *["hit"] * 37], driver=driver, fold_size=size) as session:
            fold = ReportFold(session.experiment.detector, session.manifest.n_units)
            results.append(session.fold(fold, f"report-{driver}"))
    assert_equal(*results)
    assert results[0]["along"].sum() == 40
    json.dumps(unpacked(results[0]["reasons"]))


def test_workers_need_no_plotting() -> None:
    program = "import sys, xfelproc.report.fold; print([m for m in ('plotly', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
