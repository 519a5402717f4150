from __future__ import annotations

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

from xfelproc.algorithms.calibration.common_mode import CommonMode, MedianOffset, PeakOffset, UnbondedOffset
from xfelproc.errors import DataError
from xfelproc.models.conventions import MaskBit

SHAPE = (2, 20, 30)
MASK = np.zeros(SHAPE, dtype=np.uint8)
NOISE = np.full(SHAPE, 3.0, dtype=np.float32)
INVERSE = np.full(2, 0.1, dtype=np.float32)


class Section(BaseModel):
    common_mode: CommonMode


def test_a_method_is_named_or_has_a_table() -> None:
    assert Section.model_validate({"common_mode": "peak"}).common_mode == PeakOffset()
    table = {"method": "unbonded", "group": [10, 15], "pixels": [[0, 0], [3, 3]]}
    assert Section.model_validate({"common_mode": table}).common_mode.group == (10, 15)
    with pytest.raises(ValidationError, match="unbound"):
        Section.model_validate({"common_mode": "unbound"})


@pytest.mark.parametrize(
    ("group", "n", "last"),
    [
        ("panel", 2, [1, 0, 20, 0, 30]),
        ("rows", 40, [1, 19, 20, 0, 30]),
        ("columns", 60, [1, 0, 20, 29, 30]),
        ((10, 16), 8, [1, 10, 20, 16, 30]),
    ],
)
def test_groups(group: object, n: int, last: list[int]) -> None:
    groups = MedianOffset(group=group).prepare(MASK, NOISE, INVERSE)  # type: ignore[arg-type]
    assert len(groups.bounds) == n
    assert groups.bounds[-1].tolist() == last
    covered = np.zeros(SHAPE, dtype=int)
    for p, y0, y1, x0, x1 in groups.bounds:
        covered[p, y0:y1, x0:x1] += 1
    assert np.all(covered == 1)
    np.testing.assert_allclose(groups.sigma, 3.0)
    np.testing.assert_allclose(groups.gain, 10.0, rtol=1e-6)
    np.testing.assert_allclose(groups.max_offset, 60.0)
    np.testing.assert_allclose(groups.max_error, 1.0, rtol=1e-6)


def test_padding_is_no_group() -> None:
    mask = MASK.copy()
    mask[1, :, 15:] = MaskBit.PADDING
    assert len(MedianOffset(group=(20, 15)).prepare(mask, NOISE, INVERSE).bounds) == 3


def test_odd_pixels_do_not_serve() -> None:
    mask, noise = MASK.copy(), NOISE.copy()
    inverse = np.full(SHAPE, 0.1, dtype=np.float32)
    mask[0, 0, 0] = MaskBit.BAD
    noise[0, 1, 1], noise[0, 2, 2] = 20.0, np.nan
    inverse[0, 3, 3], inverse[0, 4, 4], inverse[0, 5, 5] = 0.7, 0.0, np.nan
    inverse[1, :, ::2] = 0.11
    groups = PeakOffset().prepare(mask, noise, inverse)
    assert np.argwhere(groups.use).tolist() == [[0, i, i] for i in range(6)]
    assert groups.spread[0] == pytest.approx(0.0, abs=1e-6)
    assert groups.gain[1] == pytest.approx((10 + 1 / 0.11) / 2)
    assert groups.spread[1] == pytest.approx((10 - 1 / 0.11) / 2, rel=1e-4)


def test_a_group_without_pixels_is_no_error() -> None:
    mask = MASK.copy()
    mask[1] = MaskBit.BAD
    groups = PeakOffset(noise=2.5).prepare(mask, None, INVERSE)
    assert groups.gain[1] == np.inf
    assert groups.use[1].all()
    assert groups.sigma[0] == 2.5


def test_unbonded_pixels_serve_though_they_are_masked() -> None:
    mask = np.full(SHAPE, MaskBit.BAD, dtype=np.uint8)
    inverse = np.full(SHAPE, 0.1, dtype=np.float32)
    inverse[:, np.arange(20), np.arange(20)] = 0.0
    groups = UnbondedOffset(step=5).prepare(mask, NOISE, inverse)
    assert np.argwhere(groups.use[0] == 0).tolist() == [[i, i] for i in range(0, 20, 5)]
    assert groups.gain[0] == pytest.approx(10.0)
    listed = UnbondedOffset(group=(10, 10), pixels=((0, 1),))
    assert np.argwhere(listed.unbonded(mask)[0]).tolist() == [[y, x + 1] for y in (0, 10) for x in (0, 10, 20)]


def test_bad_input() -> None:
    with pytest.raises(DataError, match=r"needs the noise.*common_mode\.noise"):
        PeakOffset().prepare(MASK, None, INVERSE)
    with pytest.raises(DataError, match="256 rows, 256 columns: panels have 20 rows, 30 columns"):
        PeakOffset(group=(256, 256)).prepare(MASK, NOISE, INVERSE)
    with pytest.raises(DataError, match=r"pixels \[25, 0\]"):
        UnbondedOffset(pixels=((25, 0),)).prepare(MASK, NOISE, INVERSE)
