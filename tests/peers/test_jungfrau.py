"""Raw frames of a real JUNGFRAU module with the facility's pedestals, against the facility's own conversion."""

from __future__ import annotations

import io
import lzma
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from xfelproc.algorithms.calibration import Calibrate
from xfelproc.algorithms.calibration.dark_pixels import DarkPixels, bad_pixels
from xfelproc.io.calibration_file import read_calibration, write_calibration
from xfelproc.models.calibration import DetectorConstants, StageCoding
from xfelproc.models.conventions import MaskBit, PixelMask
from xfelproc.models.experiment import Beam, Detector, Panel
from xfelproc.models.frames import Frame, FrameRef

pytestmark = pytest.mark.peer

SHAPE = (1, 512, 1024)
SATURATED = 32678.0
"""What the facility writes for saturated pixels."""
PANEL = Panel("m5", (1, 0, 0), (0, -1, 0), (0, 0, -100), (0.075, 0.075), (1024, 512))


def binary(folder: Path, name: str, dtype: str) -> NDArray[np.float32]:
    with lzma.open(folder / f"{name}.bin.xz") as stream:
        return np.frombuffer(stream.read(), dtype).reshape(SHAPE)


def array(folder: Path, name: str) -> NDArray[np.float64]:
    with lzma.open(folder / f"{name}.npy.xz") as stream:
        found: NDArray[np.float64] = np.load(io.BytesIO(stream.read())).reshape(SHAPE)
    return found


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "jungfrau_raw"


@pytest.fixture(scope="module")
def constants(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DetectorConstants:
    """The facility's pedestals and the derived gains, by way of a file; the gain of the last stage is not known."""
    pedestal = np.stack([binary(folder, f"mod5_pedeG{stage}", "f4") for stage in range(3)])
    gain = np.full((3, *SHAPE), np.nan, dtype=np.float32)
    gain[0] = array(folder, "derived_gain_G0_adu_per_photon")
    sparse = array(folder, "derived_gain_G1_adu_per_photon_sparse")
    gain[1] = np.where(sparse == 0, np.nan, sparse)
    coding = StageCoding("bits", np.array([[0, 1, -1, 2]], dtype=np.int8))
    path = tmp_path_factory.mktemp("jungfrau") / "constants.h5"
    write_calibration(path, DetectorConstants(pedestal, gain=gain, coding=coding, mask=np.zeros(SHAPE, np.uint32)))
    return read_calibration(path)


@pytest.mark.parametrize("number", range(4))
def test_photons_are_the_facilitys(folder: Path, constants: DetectorConstants, number: int) -> None:
    raw = binary(folder, f"mod5_raw{number}", "u2").astype(np.uint16)
    theirs = binary(folder, f"mod5_conv{number}", "f4")
    detector = Detector((PANEL,))
    static = np.zeros(SHAPE, np.uint8)
    frame = Frame(FrameRef(0, number), raw, static, detector.trusted_ranges, detector, Beam(1.0))
    calibrate = Calibrate()
    prepared = calibrate.constants(detector, static, calibration=constants)
    done = calibrate.apply(frame, prepared)
    reasons = calibrate.reasons(frame, prepared)
    assert constants.gain is not None
    stage = raw >> 14
    for code, least in ((0, 523_000), (1, 400)):
        known = (stage == code) & np.isfinite(constants.gain[code]) & np.isfinite(theirs)
        assert known.sum() > least
        np.testing.assert_allclose(done.pixels[known], theirs[known], rtol=1e-6, atol=0)
        assert not reasons[known & (prepared.mask == 0)].any()
    saturated = theirs == SATURATED
    assert saturated.any()
    assert np.all(reasons[saturated] & PixelMask.SATURATED)
    assert np.array_equal(reasons & PixelMask.SATURATED != 0, saturated)
    assert np.all(done.pixels[saturated] > done.trusted[0, 1])
    last = (stage == 3) & ~saturated
    assert last.any()
    assert np.all(reasons[last] & PixelMask.NO_GAIN)
    assert np.isnan(done.pixels[last]).all()
    unknown = np.isnan(constants.gain[0])
    assert unknown.sum() == 106
    assert np.all(reasons[unknown] & PixelMask.NO_GAIN)
    assert np.all(prepared.mask[unknown] == MaskBit.CALIBRATION)
    assert np.isnan(done.pixels[unknown & (stage == 0)]).all()


def test_few_pixels_of_a_real_module_are_bad(folder: Path) -> None:
    """What a real pedestal and its noise look like: 82 pixels never move, and a few tenths of a percent stand out."""
    pedestal, noise = binary(folder, "mod5_pedeG0", "f4"), binary(folder, "mod5_pedeG0_RMS", "f4")
    n = np.full(SHAPE, 1000, dtype=np.uint32)
    reasons = bad_pixels(DarkPixels(), pedestal, noise, n, 1000, noise == 0, np.zeros(SHAPE, np.bool_))
    assert np.all(reasons[noise == 0] & PixelMask.STUCK)
    assert 0.0005 < np.mean(reasons != 0) < 0.01
