from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from xfelproc.algorithms.calibration import Calibrate
from xfelproc.errors import DataError
from xfelproc.models.calibration import DetectorConstants, StageCoding
from xfelproc.models.conventions import HC, MaskBit, PixelMask
from xfelproc.models.experiment import Beam, Detector, Panel
from xfelproc.models.frames import Frame, FrameRef

JUNGFRAU = StageCoding("bits", np.array([[0, 1, -1, 2]], dtype=np.int8))


def detector() -> Detector:
    model = Panel("p0", (1, 0, 0), (0, -1, 0), (0, 0, -100), (0.075, 0.075), (150, 70))
    return Detector((model, replace(model, name="p1"), replace(model, name="q0")))


SHAPE = detector().stack_shape


def frame_of(pixels: NDArray[Any], stages: NDArray[Any] | None = None) -> Frame:
    model = detector()
    return Frame(FrameRef(0, 7), pixels, np.zeros(SHAPE, np.uint8), model.trusted_ranges, model, Beam(1.3), stages=stages)


def constants_of(**changes: Any) -> DetectorConstants:
    """Pedestals and gains of three stages, as JUNGFRAU has them."""
    rng = np.random.default_rng(5)
    pedestal = np.stack([rng.normal(level, 50, SHAPE) for level in (2500, 13500, 14000)])
    gain = np.stack([rng.normal(mean, abs(mean) / 50, SHAPE) for mean in (500, -18, -1.3)])
    return replace(DetectorConstants(pedestal.astype(np.float32), gain=gain.astype(np.float32), coding=JUNGFRAU), **changes)


def raw_frame(seed: int = 1) -> tuple[NDArray[np.uint16], NDArray[np.uint16], NDArray[np.uint16]]:
    """Raw values, their codes and the values without them; most pixels are in the first stage."""
    rng = np.random.default_rng(seed)
    codes = np.where(rng.random(SHAPE) < 0.03, rng.integers(0, 4, SHAPE), 0).astype(np.uint16)
    values = rng.integers(100, 16000, SHAPE).astype(np.uint16)
    return (codes << 14) | values, codes, values


def expected(codes: NDArray[Any], values: NDArray[Any], given: DetectorConstants, table: NDArray[Any]) -> NDArray[np.float64]:
    """Photons, by plain indexing; NaN where there is no stage or no gain."""
    assert given.pedestal is not None
    assert given.gain is not None
    stage = np.array([row[np.minimum(c, len(row) - 1)] for row, c in zip(table, codes, strict=True)])
    p, y, x = np.indices(SHAPE)
    gain = given.gain[np.maximum(stage, 0), p, y, x].astype(np.float64)
    photons: NDArray[np.float64] = (values - given.pedestal[np.maximum(stage, 0), p, y, x].astype(np.float64)) / gain
    return np.where(stage >= 0, photons, np.nan)


def test_bits_against_numpy() -> None:
    given = constants_of()
    raw, codes, values = raw_frame()
    calibrate = Calibrate()
    constants = calibrate.constants(detector(), np.zeros(SHAPE, np.uint8), calibration=given)
    done = calibrate.apply(frame_of(raw), constants)
    wanted = expected(codes, values, given, np.repeat(JUNGFRAU.stages, 3, axis=0))
    assert np.isnan(wanted).any()
    np.testing.assert_allclose(done.pixels, wanted, rtol=1e-6, atol=1e-6)
    assert np.all(done.pixels[~np.isnan(wanted)] <= np.broadcast_to(done.trusted[:, 1, None, None], SHAPE)[~np.isnan(wanted)])
    assert not constants.mask.any()


def test_saturated_missing_and_unusable_pixels_have_their_reasons() -> None:
    given = constants_of(mask=np.zeros(SHAPE, np.uint32))
    assert given.gain is not None
    assert given.mask is not None
    raw, codes, _ = raw_frame(2)
    raw[0, 5, 5] = 3 << 14  # the last stage falls with the signal: 0 is its end
    raw[0, 5, 6] = 0xFFFF
    raw[0, 5, 7] = (2 << 14) | 900
    raw[0, 5, 8] = (1 << 14) | 12000
    raw[0, 5, 9] = 2600
    given.gain[1, 0, 5, 8] = 0.0
    given.gain[0, 0, 5, 9] = np.nan
    given.gain[1, 0, 5, 10], raw[0, 5, 10] = 18.0, (1 << 14) | 12000  # the sign of no other pixel
    given.mask[0, 6, 6] = PixelMask.HOT
    static = np.zeros(SHAPE, np.uint8)
    static[0, 6, 7] = MaskBit.BAD
    calibrate = Calibrate(edge_pixels=1)
    constants = calibrate.constants(detector(), static, calibration=given)
    frame = frame_of(raw)
    done = calibrate.apply(frame, constants)
    reasons = calibrate.reasons(frame, constants)
    wanted = {
        5: PixelMask.SATURATED,
        6: PixelMask.NO_VALUE,
        7: PixelMask.NO_VALUE,
        8: PixelMask.NO_GAIN,
        9: PixelMask.NO_GAIN,
        10: PixelMask.NO_GAIN,
    }
    assert {x: PixelMask(int(reasons[0, 5, x])) for x in wanted} == wanted
    assert done.pixels[0, 5, 5] > done.trusted[0, 1]
    assert np.isnan(done.pixels[0, 5, 6:11]).all()
    assert constants.mask[0, 5, 9] == MaskBit.CALIBRATION
    assert constants.mask[0, 6, 6] == MaskBit.CALIBRATION
    assert constants.mask[0, 5, 8] == 0  # in its first stage it measures
    assert reasons[0, 6, 6] & PixelMask.HOT
    assert reasons[0, 6, 7] & PixelMask.USER
    assert not reasons[0, 6, 6] & PixelMask.NO_GAIN
    assert reasons[0, 0, 0] & PixelMask.EDGE
    plain = (codes != 2) & (constants.mask == 0)
    plain[0, 5] = False
    assert not reasons[plain].any()


def test_modes_of_single_panels() -> None:
    given = constants_of(coding=None)
    raw, codes, values = raw_frame(3)
    raw[2] = (1 << 14) | values[2]
    codes[2] = 1
    stages = {"method": "bits", "panels": {"p*": [0, 1, -1, -1], "q0": [-1, 2, -1, -1]}}
    calibrate = Calibrate.model_validate({"gain_stages": stages})
    constants = calibrate.constants(detector(), np.zeros(SHAPE, np.uint8), calibration=given)
    done = calibrate.apply(frame_of(raw), constants)
    table = np.array([[0, 1, -1, -1], [0, 1, -1, -1], [-1, 2, -1, -1]])
    np.testing.assert_allclose(done.pixels, expected(codes, values, given, table), rtol=1e-6, atol=1e-6)
    with pytest.raises(DataError, match="no panel's name is like 'x'"):
        Calibrate.model_validate({"gain_stages": stages | {"panels": {"x": [0, 1, 2, 2]}}}).constants(
            detector(), np.zeros(SHAPE, np.uint8), calibration=given
        )


def test_epix10k_has_one_bit() -> None:
    given = constants_of(coding=None)
    raw, codes, values = raw_frame(4)
    codes &= 1
    raw = (codes << 14) | values
    calibrate = Calibrate.model_validate({"gain_stages": "epix10k"})
    constants = calibrate.constants(detector(), np.zeros(SHAPE, np.uint8), calibration=given)
    table = np.array([[0, 1]] * 3)
    np.testing.assert_allclose(calibrate.apply(frame_of(raw), constants).pixels, expected(codes, values, given, table), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("kind", ["codes", "thresholds", "thresholds of the file"])
def test_a_separate_array_tells_the_stage(kind: str, dtype: str) -> None:
    given = constants_of(coding=None)
    _, codes, values = raw_frame(5)
    stages, table = {"method": "array"}, np.array([[0, 1, 2]] * 3)
    codes = np.minimum(codes, 2)
    told: NDArray[Any] = codes
    if kind != "codes":
        told = (6000 + 1000 * codes).astype(np.uint16)
        thresholds = np.array([6500.0, 7500.0], dtype=np.float32)
        if kind == "thresholds":
            stages["thresholds"] = thresholds.tolist()  # type: ignore[assignment]
        else:
            full = np.broadcast_to(thresholds[:, None, None, None], (2, *SHAPE)).copy()
            full[:, 1, 3, 3] = 6500.0, 6600.0
            told[1, 3, 3], codes[1, 3, 3] = 6700, 2
            coding = StageCoding("array", np.array([[0, 1, 2]], dtype=np.int8), 0, full)
            given, stages = replace(given, coding=coding), {"method": "auto"}
    else:
        told[0, 2, 2] = codes[0, 2, 2] = 9
    calibrate = Calibrate.model_validate({"gain_stages": stages})
    constants = calibrate.constants(detector(), np.zeros(SHAPE, np.uint8), calibration=given)
    done = calibrate.apply(frame_of(values.astype(dtype), told), constants)
    wanted = expected(codes, values, given, table)
    if kind == "codes":
        wanted[0, 2, 2] = np.nan
    np.testing.assert_allclose(done.pixels, wanted, rtol=1e-6, atol=1e-6)
    assert np.nanmax(done.pixels / done.trusted[:, 1, None, None]) <= 1.0
    with pytest.raises(DataError, match=r"set input\.gain_data"):
        calibrate.apply(frame_of(values), constants)


@pytest.mark.parametrize("stages", [1, 3])
def test_gains_in_kev_go_by_the_photon_energy(stages: int) -> None:
    given = constants_of(coding=JUNGFRAU if stages == 3 else None)
    assert given.pedestal is not None
    assert given.gain is not None
    raw, _, values = raw_frame(6)
    frame = frame_of(raw if stages == 3 else values)
    given = replace(given, pedestal=given.pedestal[:stages], gain=given.gain[:stages])
    per_kev = replace(given, gain=given.gain[:stages] / np.float32(HC / 1.3e3), gain_unit="ADU/keV")
    calibrate, static = Calibrate(), np.zeros(SHAPE, np.uint8)
    photons = calibrate.apply(frame, calibrate.constants(detector(), static, calibration=given)).pixels.copy()
    constants = calibrate.constants(detector(), static, calibration=per_kev)
    np.testing.assert_allclose(calibrate.apply(frame, constants).pixels, photons, rtol=1e-6)
    twice = calibrate.apply(replace(frame, beam=Beam(2.6)), constants)
    np.testing.assert_allclose(twice.pixels, 2 * photons, rtol=1e-6)
    assert np.nanmax(twice.pixels / twice.trusted[:, 1, None, None]) <= 1.0


def test_one_stage_of_a_constants_file() -> None:
    given = constants_of(coding=None)
    assert given.pedestal is not None
    _, _, values = raw_frame(7)
    pedestal, gain = given.pedestal[:1], np.array([[500.0, 510.0, 490.0]], dtype=np.float32)
    static, calibrate = np.zeros(SHAPE, np.uint8), Calibrate()
    one = DetectorConstants(pedestal, gain=gain, saturation=15000.0)
    done = calibrate.apply(frame_of(values), calibrate.constants(detector(), static, calibration=one))
    photons = (values - pedestal[0]) / gain[0][:, None, None]
    np.testing.assert_allclose(done.pixels[values < 15000], photons[values < 15000], rtol=1e-5, atol=1e-5)
    assert np.array_equal(done.pixels > done.trusted[:, 1, None, None], values >= 15000)
    own = calibrate.constants(detector(), static, dark=np.zeros(SHAPE), gain=np.full(SHAPE, 2.0), calibration=one)
    np.testing.assert_allclose(calibrate.apply(frame_of(values), own).pixels[values < 15000], values[values < 15000] / 2)


def test_the_jobs_maps_win() -> None:
    given, static, calibrate = constants_of(), np.zeros(SHAPE, np.uint8), Calibrate()
    raw, codes, values = raw_frame(8)
    dark, gain = np.full(SHAPE, 2000, dtype=np.float32), np.full(SHAPE, 400, dtype=np.float32)
    assert given.pedestal is not None
    assert given.gain is not None
    other = replace(given, pedestal=np.stack([dark, *given.pedestal[1:]]), gain=np.stack([gain, *given.gain[1:]]))
    done = calibrate.apply(frame_of(raw), calibrate.constants(detector(), static, dark, gain, given))
    table = np.repeat(JUNGFRAU.stages, 3, axis=0)
    np.testing.assert_allclose(done.pixels, expected(codes, values, other, table), rtol=1e-6)


def test_impossible_stages_are_refused() -> None:
    given, static = constants_of(), np.zeros(SHAPE, np.uint8)
    assert given.gain is not None
    assert given.pedestal is not None
    with pytest.raises(DataError, match="nothing says how raw values tell them"):
        Calibrate().constants(detector(), static, calibration=replace(given, coding=None))
    with pytest.raises(DataError, match=r"gain has 2 gain stage\(s\), raw values tell 3"):
        Calibrate().constants(detector(), static, calibration=replace(given, gain=given.gain[:2]))
    with pytest.raises(DataError, match="need a dark of each stage"):
        Calibrate.model_validate({"gain_stages": "bits"}).constants(detector(), static)
    with pytest.raises(DataError, match=r"pedestal in the constants file has shape .* give the constants of this detector"):
        Calibrate().constants(detector(), static, calibration=replace(given, pedestal=given.pedestal[:, :, :-1]))
    with pytest.raises(DataError, match="no pixel has a usable dark and gain"):
        Calibrate().constants(detector(), static, calibration=replace(given, gain=np.zeros_like(given.gain)))
    constants = Calibrate().constants(detector(), static, calibration=given)
    with pytest.raises(DataError, match="pixels of type int32 hold no gain stage in bits"):
        Calibrate().apply(frame_of(np.zeros(SHAPE, np.int32)), constants)
    plain = Calibrate().constants(detector(), static)
    with pytest.raises(DataError, match="nothing says what its values mean"):
        Calibrate().apply(frame_of(np.zeros(SHAPE, np.uint16), np.zeros(SHAPE, np.uint8)), plain)


def test_settings_of_bits_matter() -> None:
    given, static = constants_of(coding=None), np.zeros(SHAPE, np.uint8)
    raw, *_ = raw_frame(9)
    raw[0, 0, 0] = (3 << 14) | 200

    def photons(**settings: Any) -> NDArray[np.float32]:
        calibrate = Calibrate.model_validate({"gain_stages": {"method": "bits", **settings}})
        done = calibrate.apply(frame_of(raw), calibrate.constants(detector(), static, calibration=given))
        return np.where(done.pixels > done.trusted[:, 1, None, None], np.float32(-1), done.pixels)

    usual = photons()
    for changed in ({"shift": 13, "stages": (0, 1, 1, 1, 1, 1, 1, 2)}, {"stages": (0, 1, 2, -1)}, {"saturated": 300}):
        assert not np.array_equal(photons(**changed), usual, equal_nan=True)
