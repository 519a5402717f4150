from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from xfelproc.algorithms.calibration import Calibrate, estimate_gain
from xfelproc.errors import DataError
from xfelproc.models.conventions import MaskBit
from xfelproc.models.experiment import Beam, Detector, Panel
from xfelproc.models.frames import Frame, FrameRef


def detector(panels: int = 2, **changes: object) -> Detector:
    model = Panel("p", (1, 0, 0), (0, -1, 0), (0, 0, -100), (0.1, 0.1), (200, 150), (-10.0, 5000.0))
    return Detector(tuple(replace(model, **changes) for _ in range(panels)))  # type: ignore[arg-type]


def frame_of(pixels: np.ndarray, model: Detector) -> Frame:
    return Frame(FrameRef(0, 3), pixels, np.zeros(pixels.shape, dtype=np.uint8), model.trusted_ranges, model, Beam(1.3))


def blank(model: Detector, mean: float = 4.0, gain: float = 1.0, dtype: str = "int32") -> Frame:
    counts = np.random.default_rng(2).poisson(mean, model.stack_shape)
    return frame_of((counts * gain).astype(dtype), model)


def test_photons_pass_uncopied() -> None:
    model = detector()
    frame = blank(model)
    done = Calibrate().apply(frame, Calibrate().constants(model, frame.mask))
    assert done.pixels is frame.pixels
    assert np.array_equal(done.trusted, frame.trusted)


@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32", "float32"])
def test_maps_against_numpy(dtype: str) -> None:
    model = detector()
    rng = np.random.default_rng(4)
    dark = rng.uniform(20, 40, model.stack_shape).astype(np.float32)
    gain = rng.uniform(4, 6, model.stack_shape).astype(np.float32)
    raw = np.rint(rng.poisson(3, model.stack_shape) * gain + dark).astype(dtype)
    raw[0, 5, 5] = 6000
    gain[1, 3, 4], gain[1, 3, 5], dark[0, 7, 7] = 0.0, np.nan, np.nan
    frame = frame_of(raw, model)
    calibrate = Calibrate()
    constants = calibrate.constants(model, frame.mask, dark, gain)
    done = calibrate.apply(frame, constants)
    good = constants.mask == 0
    good[0, 5, 5] = False
    np.testing.assert_allclose(done.pixels[good], (raw[good] - dark[good]) / gain[good], rtol=1e-6, atol=1e-6)
    single = (raw.astype(np.float32) - dark)[good] * (np.float32(1) / gain[good])
    assert np.array_equal(done.pixels[good], single)  # to the last bit
    assert done.pixels.dtype == np.float32
    assert done.pixels[0, 5, 5] > done.trusted[0, 1]
    assert np.all(done.pixels[good] <= done.trusted[0, 1])
    assert [constants.mask[i] for i in ((1, 3, 4), (1, 3, 5), (0, 7, 7))] == [MaskBit.CALIBRATION] * 3
    endless = replace(frame, trusted=np.full((2, 2), [-np.inf, np.inf]))
    assert np.array_equal(calibrate.apply(endless, constants).pixels[good], single)


def test_values_that_are_no_measurement_become_nan() -> None:
    model = detector(gain=5.0, pedestal=7.0)
    frame = blank(model, dtype="float32")
    frame.pixels[0, 0, 0], frame.pixels[0, 0, 1] = np.nan, -11.0
    done = Calibrate().apply(frame, Calibrate().constants(model, frame.mask))
    assert np.isnan(done.pixels[0, 0, :2]).all()
    assert np.isfinite(done.pixels).sum() == done.pixels.size - 2
    np.testing.assert_allclose(done.pixels[1], (frame.pixels[1] - 7.0) / 5.0, rtol=1e-6)


def test_mask_holds_regions_edges_and_padding() -> None:
    small = replace(detector(1).panels[0], image_size=(180, 140), mask=((10, 20, 12, 23),))
    model = Detector((detector(1).panels[0], small))
    static = np.zeros(model.stack_shape, dtype=np.uint8)
    static[0, 70, 70] = MaskBit.BAD
    mask = Calibrate(edge_pixels=2).constants(model, static).mask
    assert mask[0, 70, 70] == MaskBit.BAD
    assert np.all(mask[1, 20:23, 10:12] == MaskBit.REGION)
    assert np.all(mask[1, 140:] == MaskBit.PADDING)
    assert np.all(mask[1, :140, 180:] == MaskBit.PADDING)
    edge = mask & MaskBit.EDGE > 0
    assert edge[0].sum() == 200 * 150 - 196 * 146
    assert edge[1].sum() == 180 * 140 - 176 * 136
    assert not mask.flags.writeable


@pytest.mark.parametrize(("gain", "dtype"), [(5.07, "float32"), (40.0, "int32"), (8.0, "int16")])
def test_gain_is_estimated_where_nothing_tells_it(gain: float, dtype: str) -> None:
    model = detector(4)
    frame = blank(model, 4.0, gain, dtype)
    calibrate = Calibrate()
    done = calibrate.apply(frame, calibrate.constants(model, frame.mask))
    assert abs(estimate_gain(frame) / gain - 1) < 0.05
    assert abs(done.pixels.mean() / 4.0 - 1) < 0.06
    told = Calibrate(gain="panel")
    assert told.apply(frame, told.constants(model, frame.mask)).pixels is frame.pixels


def test_gain_given_as_a_number() -> None:
    model = detector()
    frame = blank(model, 4.0, 8.0)
    calibrate = Calibrate.model_validate({"gain": 8.0})
    done = calibrate.apply(frame, calibrate.constants(model, frame.mask))
    np.testing.assert_allclose(done.pixels, frame.pixels / 8.0, rtol=1e-6)


def test_wrong_maps_are_refused() -> None:
    model = detector()
    static = np.zeros(model.stack_shape, dtype=np.uint8)
    with pytest.raises(DataError, match=r"dark of shape \(150, 199\).*\(2, 150, 200\)"):
        Calibrate().constants(model, static, dark=np.zeros((150, 199)))
    with pytest.raises(DataError, match="no pixel has a usable dark and gain"):
        Calibrate().constants(model, static, gain=np.zeros(model.stack_shape))
    with pytest.raises(DataError, match="raw units a photon must be positive"):
        Calibrate().constants(detector(gain=0.0), static)
    with pytest.raises(DataError, match="mask of shape"):
        Calibrate().constants(model, static[:1])
    wrong = blank(detector(3))
    with pytest.raises(DataError, match="frame of shape"):
        Calibrate().apply(wrong, Calibrate().constants(model, static))
