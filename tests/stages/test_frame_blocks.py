from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.stages.fakes import FakeCalibrate, open_fake
from xfelproc.algorithms.calibration.average import average_of
from xfelproc.errors import DataError
from xfelproc.io.manifest import write_manifest
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.models.frames import FrameRef
from xfelproc.run.config import make_config
from xfelproc.run.plan import make_plan
from xfelproc.stages.averaging import AverageFold
from xfelproc.stages.frame_blocks import FrameBlocks, close_sources, problems_of

WORDS = ["ok"] * 5 + ["truncated"] + ["ok"] * 6


@pytest.fixture
def blocks(tmp_path: Path) -> Any:
    (tmp_path / "frames.txt").write_text(" ".join(WORDS))
    config = make_config({"input": {"files": "frames.txt"}, "execution": {"unit_size": 4}}, tmp_path)
    manifest = make_plan(config, open_fake).manifest
    write_manifest(tmp_path / "manifest.h5", manifest)
    yield FrameBlocks(tmp_path / "manifest.h5", manifest.stamp, "read so", open_fake, SourceSettings())
    close_sources()


def test_frames_come_in_order_and_bad_ones_are_told(blocks: FrameBlocks) -> None:
    reader = blocks.open(1)
    assert [frame.ref.index for frame in reader] == [4, 6, 7]
    assert [ref for ref, _ in reader.problems] == [FrameRef(0, 5)]
    assert "frame 5: the frame is truncated" in reader.problems[0][1]


def test_lineage_changes_with_files_and_reading(blocks: FrameBlocks, tmp_path: Path) -> None:
    first = blocks.lineage(0)
    assert first != blocks.lineage(1)
    other = FrameBlocks(blocks.manifest, blocks.stamp, "read otherwise", open_fake, SourceSettings())
    assert other.lineage(0) != first
    assert blocks.lineage(0) == first


def values(numbers: list[int]) -> np.ndarray:
    return np.array([n % 7 + 3 for n in numbers], dtype=np.float64)


@pytest.mark.parametrize("calibrate", [None, FakeCalibrate()])
def test_average(blocks: FrameBlocks, calibrate: Any) -> None:
    fold = AverageFold("a", calibrate)
    parts = [fold.accumulate(blocks.open(b) for b in some) for some in ((0,), (1, 2))]
    whole = fold.combine(*parts)
    found = average_of(whole)
    assert found is not None
    expected = values([n for n in range(12) if n != 5])
    assert found.n_frames == 11
    np.testing.assert_allclose(found.mean, expected.mean(), rtol=1e-6)
    np.testing.assert_allclose(found.sd, expected.std(ddof=1), rtol=1e-6)
    assert np.all(found.maximum == expected.max())
    assert np.all(found.count == 11)
    assert whole["unread_frames"] == 1
    assert problems_of(whole)[0][0] == FrameRef(0, 5)


def test_nothing_readable(tmp_path: Path, blocks: FrameBlocks) -> None:
    fold = AverageFold("a")
    empty = fold.accumulate([])
    assert average_of(empty) is None
    full = fold.accumulate([blocks.open(0)])
    for pair in ((empty, full), (full, empty)):
        joined = fold.combine(*pair)
        assert int(joined["n_frames"]) == 4
        assert average_of(joined) is not None


def test_other_shape(blocks: FrameBlocks) -> None:
    fold = AverageFold("a")
    one = fold.accumulate([blocks.open(0)])
    other = {**one, "total": np.zeros((2, 3, 3))}
    with pytest.raises(DataError, match="frames of one detector alone"):
        fold.combine(one, other)
