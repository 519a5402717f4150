from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

from xfelproc.algorithms.calibration.calibrate import Calibrate
from xfelproc.algorithms.calibration.common_mode import CommonMode, MedianOffset, PeakOffset, UnbondedOffset
from xfelproc.errors import DataError
from xfelproc.models.calibration import DetectorConstants, GainUnit
from xfelproc.models.conventions import MaskBit, wavelength_of
from xfelproc.models.experiment import Beam, Detector, Panel
from xfelproc.models.frames import Frame, FrameRef

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
    np.testing.assert_allclose(groups.constants, np.tile([3.0, 10.0, 0.0, 60.0, 0.1], (n, 1)), rtol=1e-6, atol=1e-6)


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
    assert groups.constants[1, 1] == pytest.approx((10 + 1 / 0.11) / 2)
    assert groups.constants[:, 2] == pytest.approx([0.0, 0.0], abs=1e-6)


def test_pixels_of_two_noises_are_not_gaussian_together() -> None:
    noise = NOISE.copy()
    noise[:, :, ::2] = 4.0
    sigma, _, kurtosis = PeakOffset().prepare(MASK, noise, INVERSE).constants[0, :3]
    assert sigma == pytest.approx(np.sqrt(12.5))
    assert kurtosis == pytest.approx(3 * (9**2 + 16**2) / 2 / 12.5**2 - 3)
    few = np.random.default_rng(1).normal(0, 3, (20, *SHAPE)).std(axis=0, ddof=1).astype(np.float32)
    assert PeakOffset().prepare(MASK, few, INVERSE).constants[0, 2] == pytest.approx(6 / 19, rel=0.3)
    assert PeakOffset().prepare(MASK, few, INVERSE, 20).constants[0, 2] < 0.08


def test_a_group_without_pixels_is_no_error() -> None:
    mask = MASK.copy()
    mask[1] = MaskBit.BAD
    groups = PeakOffset(noise=2.5).prepare(mask, None, INVERSE)
    assert groups.constants[1, 1] == np.inf
    assert groups.use[1].all()
    assert groups.constants[0, 0] == 2.5


def test_unbonded_pixels_serve_though_they_are_masked() -> None:
    mask = np.full(SHAPE, MaskBit.BAD, dtype=np.uint8)
    inverse = np.full(SHAPE, 0.1, dtype=np.float32)
    inverse[:, np.arange(20), np.arange(20)] = 0.0
    groups = UnbondedOffset(step=5).prepare(mask, NOISE, inverse)
    assert np.argwhere(groups.use[0] == 0).tolist() == [[i, i] for i in range(0, 20, 5)]
    assert groups.constants[0, 1] == pytest.approx(10.0)
    listed = UnbondedOffset(group=(10, 10), pixels=((0, 1),))
    assert np.argwhere(listed.unbonded(mask)[0]).tolist() == [[y, x + 1] for y in (0, 10) for x in (0, 10, 20)]


def test_bad_input() -> None:
    with pytest.raises(DataError, match=r"needs the noise.*common_mode\.noise"):
        PeakOffset().prepare(MASK, None, INVERSE)
    with pytest.raises(DataError, match="256 rows, 256 columns: panels have 20 rows, 30 columns"):
        PeakOffset(group=(256, 256)).prepare(MASK, NOISE, INVERSE)
    with pytest.raises(DataError, match=r"pixels \[25, 0\]"):
        UnbondedOffset(pixels=((25, 0),)).prepare(MASK, NOISE, INVERSE)


PANEL = Panel("p", (1, 0, 0), (0, -1, 0), (0, 0, -100), (0.1, 0.1), (120, 100), (0.0, 65000.0))
DETECTOR = Detector((PANEL, replace(PANEL, name="q")))
STAGES = {"one": "none", "bits": {"method": "bits", "stages": [0, 1, -1, -1]}, "array": {"method": "array", "stages": [0, 1]}}


def exposed(kind: str, offsets: np.ndarray, unit: GainUnit) -> tuple[Frame, np.ndarray, DetectorConstants]:
    """Return a raw frame whose four groups (100 x 60) have the offsets, its photons, and the constants."""
    rng = np.random.default_rng(11)
    shape = DETECTOR.stack_shape
    per_photon = 60.0 if unit == "ADU/photon" else 6.0  # photons of 10 keV
    gain = np.stack([per_photon * (1 + 0.03 * rng.standard_normal(shape)), np.full(shape, -per_photon / 20)]).astype(np.float32)
    pedestal = np.stack([rng.normal(2000, 40, shape), np.full(shape, 14000.0)]).astype(np.float32)
    photons = rng.poisson(0.3, shape)
    photons[:, 20:23, 30:33] = 400
    energy = photons * (60.0 / per_photon)
    raw = pedestal[0] + gain[0] * energy + offsets.repeat(60, axis=1)[:, None, :] + rng.normal(0, 10, shape)
    switched = photons > 100
    stages = None
    if kind != "one":
        raw[switched] = (pedestal[1] + gain[1] * energy)[switched] + (16384 if kind == "bits" else 0)
    if kind == "array":
        stages = switched.astype(np.uint8)
    pixels = np.rint(raw).astype(np.uint16)
    noise = np.full((2, *shape), 10.0, dtype=np.float32)
    constants = DetectorConstants(pedestal, noise, gain, unit)
    if kind == "one":
        constants = DetectorConstants(pedestal[:1], noise[:1], gain[:1], unit)
    beam = Beam(wavelength_of(10_000.0))
    return (
        Frame(FrameRef(0, 0), pixels, np.zeros(shape, np.uint8), DETECTOR.trusted_ranges, DETECTOR, beam, stages=stages),
        photons,
        constants,
    )


@pytest.mark.parametrize("unit", ["ADU/photon", "ADU/keV"])
@pytest.mark.parametrize("kind", STAGES)
def test_frames_are_corrected(kind: str, unit: GainUnit) -> None:
    offsets = np.array([[60.0, -35.0], [0.0, 110.0]])
    frame, photons, known = exposed(kind, offsets, unit)
    stages = STAGES[kind]
    section = {"gain_stages": stages, "common_mode": {"method": "peak", "group": [100, 60]}}
    calibrate = Calibrate.model_validate(section)
    constants = calibrate.constants(DETECTOR, frame.mask, calibration=known)
    done = calibrate.apply(frame, constants)
    assert done.common_mode_failed == 0
    error = done.pixels - photons
    weak = photons < 5
    for (p, i), _ in np.ndenumerate(offsets):
        assert abs(np.mean(error[p, :, 60 * i : 60 * i + 60][weak[p, :, 60 * i : 60 * i + 60]])) < 0.01
    # another stage has no common mode
    np.testing.assert_allclose(done.pixels[~weak], 400, rtol=0.05 if kind == "one" else 0.005)
    plain = Calibrate.model_validate({"gain_stages": stages})
    left = plain.apply(frame, plain.constants(DETECTOR, frame.mask, calibration=known)).pixels - photons
    assert np.mean(left[0, :, :60][weak[0, :, :60]]) == pytest.approx(1.0, abs=0.02)


def test_a_group_that_cannot_be_determined_is_left_and_counted() -> None:
    offsets = np.array([[60.0, -35.0], [2500.0, 20.0]])
    frame, photons, known = exposed("one", offsets, "ADU/photon")
    calibrate = Calibrate.model_validate({"common_mode": {"method": "median", "group": [100, 60]}})
    done = calibrate.apply(frame, calibrate.constants(DETECTOR, frame.mask, calibration=known))
    assert done.common_mode_failed == 1
    assert np.median(done.pixels[1, :, :60] - photons[1, :, :60]) == pytest.approx(2500 / 60, rel=0.02)
    assert abs(np.median(done.pixels[1, :, 60:] - photons[1, :, 60:])) < 0.02


@pytest.mark.parametrize("method", ["median", "mode", "peak", "unbonded"])
def test_bounds_are_kept(method: str) -> None:
    frame, _, known = exposed("one", np.array([[60.0, -35.0], [0.0, 110.0]]), "ADU/photon")
    failed = []
    # of the groups with offsets of 60, -35, 0 and 110 ADU two are within 50; no error is below a millionth of a photon
    for changes in ({}, {"max_offset": 50.0}, {"max_error": 1e-6}, {"noise": 300.0, "max_error": 0.01}):
        section = {"method": method, "group": [100, 60], **({"max_error": 1.0} | changes)}
        calibrate = Calibrate.model_validate({"common_mode": section})
        failed.append(calibrate.apply(frame, calibrate.constants(DETECTOR, frame.mask, calibration=known)).common_mode_failed)
    assert failed == [0, 2, 4, 4]


def test_missing_and_saturated_pixels_stay_so() -> None:
    frame, _, known = exposed("one", np.zeros((2, 2)), "ADU/photon")
    frame.pixels[0, 5, 5], frame.pixels[1, 7, 8] = 65535, 65100
    calibrate = Calibrate.model_validate({"common_mode": {"method": "mode", "group": [100, 60]}})
    done = calibrate.apply(frame, calibrate.constants(DETECTOR, frame.mask, calibration=known))
    assert np.isnan(done.pixels[0, 5, 5])
    assert done.pixels[1, 7, 8] > done.trusted[1, 1]
    assert np.count_nonzero(np.isnan(done.pixels)) == 1
    assert np.count_nonzero(done.pixels > done.trusted[:, 1, None, None]) == 1


def test_common_mode_without_gain_is_refused() -> None:
    frame, _, known = exposed("one", np.zeros((2, 2)), "ADU/photon")
    calibrate = Calibrate.model_validate({"common_mode": "peak"})
    with pytest.raises(DataError, match="needs the gain"):
        calibrate.constants(DETECTOR, frame.mask, calibration=replace(known, gain=None))
    assert calibrate.constants(DETECTOR, frame.mask, calibration=replace(known, mask=None)).groups is not None
    unbonded = Calibrate.model_validate({"common_mode": {"method": "unbonded", "step": 50}})
    mask = unbonded.constants(DETECTOR, frame.mask, calibration=known).mask
    assert np.argwhere(mask[0]).tolist() == [[0, 0], [50, 50]]
