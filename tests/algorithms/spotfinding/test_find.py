from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from tests.algorithms.spotfinding.frames import expected, frame_of, grid
from xfelproc.algorithms.spotfinding import FindSpots
from xfelproc.models.conventions import MaskBit, SpotFlag

DTYPES = ("uint16", "int16", "uint32", "int32", "float32")


@pytest.mark.parametrize("dtype", ["uint16", *(pytest.param(d, marks=pytest.mark.slow) for d in DTYPES[1:])])
def test_finds_the_spots_put_in_for_every_type(dtype: str) -> None:
    rng = np.random.default_rng(7)
    truth = grid(400, 300, 200.0, rng)
    frame = frame_of(rng.poisson(expected((300, 400), 3.0, truth)).astype(dtype), high=30000)
    spots = FindSpots().find(frame)
    assert len(spots) == len(truth)
    found = np.column_stack([spots["fast"], spots["slow"]])
    order = np.lexsort((truth[:, 0].astype(int) // 25, truth[:, 1].astype(int) // 25))
    nearest = np.linalg.norm(found[:, None] - truth[None, order, :2], axis=2).min(axis=1)
    assert nearest.max() < 0.5
    assert abs(np.median(spots["intensity"]) / 200 - 1) < 0.05
    assert spots["d"].min() > 1.3 / 2


@pytest.mark.slow
def test_same_spots_whatever_the_type() -> None:
    rng = np.random.default_rng(8)
    pixels = rng.poisson(expected((300, 400), 3.0, grid(400, 300, 60.0, rng)))
    tables = [FindSpots().find(frame_of(pixels.astype(dtype), high=30000)) for dtype in DTYPES]
    for table in tables[1:]:
        for column in ("fast", "slow", "intensity", "snr", "n_pixels"):
            np.testing.assert_allclose(table[column], tables[0][column], rtol=1e-6)


def test_blank_frame_is_no_hit_and_says_why() -> None:
    spots = FindSpots().find(frame_of(np.random.default_rng(1).poisson(3.0, (600, 600)).astype(np.uint16)))
    hit, reason = FindSpots().judge(spots)
    assert not hit
    assert "spots.min_spots = 10" in reason


def test_centroids_are_unbiased_and_variances_right() -> None:
    rng = np.random.default_rng(3)
    pulls, errors, intensities = [], [], []
    for _ in range(4):
        truth = grid(800, 800, 150.0, rng)
        spots = FindSpots().find(frame_of(rng.poisson(expected((800, 800), 2.0, truth)).astype(np.uint16)))
        found = np.column_stack([spots["fast"], spots["slow"]])
        distance = np.linalg.norm(found[:, None] - truth[None, :, :2], axis=2)
        error = found - truth[distance.argmin(axis=1), :2]
        near = distance.min(axis=1) < 2
        errors.append(error[near])
        pulls.append(error[near] / np.sqrt(np.column_stack([spots["var_fast"], spots["var_slow"]])[near]))
        intensities.append(((spots["intensity"] - 150.0) / (spots["intensity"] / spots["snr"]))[near])
    pull, error, sums = np.concatenate(pulls), np.concatenate(errors), np.concatenate(intensities)
    assert len(pull) > 3500
    assert np.abs(error.mean(axis=0)).max() < 4 * error.std() / np.sqrt(len(error))
    assert 0.85 < pull.std() < 1.15
    assert abs(sums.mean()) < 0.35  # the foot of a spot is cut off
    assert 0.85 < sums.std() < 1.15


def test_masked_and_saturated_pixels() -> None:
    rng = np.random.default_rng(5)
    truth = np.array([[50.5, 50.5, 3000.0], [100.5, 50.5, 3000.0], [150.5, 50.5, 200.0], [200.5, 50.5, 200.0]])
    pixels = rng.poisson(expected((100, 250), 3.0, truth)).astype(np.uint16)
    mask = np.zeros(pixels.shape, dtype=np.uint8)
    mask[40:62, 40:62] = MaskBit.BAD
    mask[50, 153] = MaskBit.BAD
    pixels[80, 80:90] = 65535  # marks missing pixels: beyond the trusted range and the largest number
    spots = FindSpots().find(frame_of(pixels, mask, high=400))
    assert np.array_equal(np.round(spots["fast"] - 0.5), [100, 150, 200])
    assert np.array_equal(spots["flags"] & SpotFlag.SATURATED > 0, [True, False, False])
    assert np.array_equal(spots["flags"] & SpotFlag.NEAR_MASK > 0, [False, True, False])


def test_filters_count_what_they_drop() -> None:
    rng = np.random.default_rng(6)
    pixels = rng.poisson(expected((400, 400), 3.0, grid(400, 400, 200.0, rng))).astype(np.uint16)
    pixels[200:204, 10:380] = 200
    pixels[10, 10] = 3000
    frame = frame_of(pixels)
    search = FindSpots(d_max=12.0, min_pixels=2).search(frame)
    assert search.dropped["too many pixels"] == 1
    assert search.dropped["too few pixels"] == 1
    assert search.dropped["below d_max"] > 0
    assert search.spots["d"].max() <= 12.0
    few = FindSpots(max_spots=20).search(frame)
    assert len(few.spots) == 20
    everything = FindSpots().find(frame)
    assert few.spots["snr"].min() >= np.sort(everything["snr"])[-20]


def test_ice_rings() -> None:
    rng = np.random.default_rng(6)
    frame = frame_of(rng.poisson(expected((1500, 1500), 3.0, grid(1500, 1500, 200.0, rng))).astype(np.uint16))
    flagged = FindSpots(max_spots=9999).find(frame)
    on_ring = flagged["flags"] & SpotFlag.ICE > 0
    kept = FindSpots(ice_rings="keep", max_spots=9999).find(frame)
    left = FindSpots(ice_rings="drop", max_spots=9999).find(frame)
    assert on_ring.sum() > 10
    assert len(kept) == len(flagged)
    assert not np.any(kept["flags"] & SpotFlag.ICE)
    assert len(left) == len(flagged) - on_ring.sum()


def test_method_by_name_and_wrong_parameters() -> None:
    assert FindSpots.model_validate({"method": "block_background"}).method.method == "block_background"
    for wrong in ({"method": "nothing"}, {"min_snrr": 3}, {"min_pixels": 0}, {"d_min": float("nan")}):
        with pytest.raises(ValidationError):
            FindSpots.model_validate(wrong)


def test_an_interrupted_frame_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(9)
    frame = frame_of(rng.poisson(expected((200, 200), 3.0, grid(200, 200, 300.0, rng))).astype(np.uint16))
    wanted = FindSpots().find(frame)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("xfelproc.algorithms.spotfinding.measure.measure_components", interrupt)
        with pytest.raises(KeyboardInterrupt):
            FindSpots().find(frame)
    again = FindSpots().find(frame)
    assert len(wanted) > 30
    for column in ("fast", "intensity", "background"):
        assert np.array_equal(again[column], wanted[column])
