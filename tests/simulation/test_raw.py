from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from pydantic import ValidationError

from xfelproc.models.conventions import HC
from xfelproc.simulation import SimulationSettings, simulate
from xfelproc.simulation.layout import make_layout
from xfelproc.simulation.raw import KINDS, Electronics
from xfelproc.simulation.raw_settings import CSPAD, JUNGFRAU, RawSettings
from xfelproc.simulation.settings import DetectorSettings

DETECTOR = DetectorSettings(layout="tiles", size=(60, 40), pixel_size=0.8, distance=110.0)
SHAPE = (8, 40, 60)
FRAMES = 60
KEV = 9.5
WAVELENGTH = HC / 1000.0 / KEV


def electronics(preset: dict[str, object], **changes: object) -> Electronics:
    settings = RawSettings(**{**preset, "asic": (30, 20), **changes})  # type: ignore[arg-type]
    return Electronics(settings, make_layout(DETECTOR).detector, seed=4)


@pytest.fixture(scope="module")
def cspad() -> Electronics:
    return electronics(CSPAD, dead=0.01, hot=0.01, cold=0.01, noisy=0.01, stuck=0.01)


@pytest.fixture(scope="module")
def darks(cspad: Electronics) -> np.ndarray:
    return np.array([cspad.dark(0, i).raw for i in range(FRAMES)], dtype=float)


def test_darks_scatter_about_pedestals_with_their_noise(cspad: Electronics, darks: np.ndarray) -> None:
    offsets = np.array([cspad.dark(0, i).common_mode for i in range(FRAMES)])
    flat = darks - offsets.repeat(20, axis=2).repeat(30, axis=3)
    good = cspad.kind == 0
    pull = (flat.mean(axis=0) - cspad.pedestal[0])[good] / (cspad.noise[0][good] / np.sqrt(FRAMES))
    assert abs(pull.mean()) < 5 / np.sqrt(good.sum())
    assert pull.std() == pytest.approx(1.0, abs=0.02)
    ratio = flat.var(axis=0, ddof=1)[good] / (cspad.noise[0][good] ** 2 + 1 / 12)  # rounding adds 1/12
    assert ratio.mean() == pytest.approx(1.0, abs=5 * np.sqrt(2 / FRAMES / good.sum()))


def test_pixels_have_the_statistics_that_the_settings_state(cspad: Electronics) -> None:
    good = (cspad.kind == 0) & ~cspad.unbonded
    n = good.sum()
    assert cspad.pedestal[0][good].mean() == pytest.approx(1200.0, abs=5 * 60 / np.sqrt(n))
    assert cspad.pedestal[0][good].std() == pytest.approx(60.0, rel=0.03)
    assert np.median(cspad.noise[0][good]) == pytest.approx(3.5, rel=0.01)
    assert np.log(cspad.noise[0][good]).std() == pytest.approx(0.1, rel=0.03)
    banks = cspad.gain[0].reshape(8, 2, 20, 2, 30).transpose(0, 1, 3, 2, 4).reshape(32, 600)
    used = good.reshape(8, 2, 20, 2, 30).transpose(0, 1, 3, 2, 4).reshape(32, 600)
    means = np.array([b[u].mean() for b, u in zip(banks, used, strict=True)]) / 2.1
    assert np.std(means) == pytest.approx(0.03, rel=0.4)
    within = np.concatenate([b[u] / b[u].mean() for b, u in zip(banks, used, strict=True)])
    assert within.std() == pytest.approx(0.04, rel=0.04)


def test_common_mode_is_shared_by_an_asic_alone(cspad: Electronics, darks: np.ndarray) -> None:
    good = cspad.kind == 0
    deviation = np.where(good, darks - cspad.pedestal[0], 0.0).reshape(FRAMES, 8, 2, 20, 2, 30)
    count = good.reshape(8, 2, 20, 2, 30).sum(axis=(2, 4))
    means = (deviation.sum(axis=(3, 5)) / count).reshape(FRAMES, 32)
    assert means.std() == pytest.approx(10.0, rel=0.06)
    correlation = np.corrcoef(means.T)[np.triu_indices(32, 1)]
    assert np.abs(correlation.mean()) < 0.05
    planted = np.array([cspad.dark(0, i).common_mode for i in range(3)]).reshape(3, 32)
    np.testing.assert_allclose(means[:3], planted, atol=5 * 3.5 * 3 / np.sqrt(500))


def test_signal_is_photons_times_energy_times_gain(cspad: Electronics) -> None:
    photons = np.full(SHAPE, 7)
    raw = np.array([cspad.expose(photons, WAVELENGTH, i).raw for i in range(FRAMES)], dtype=float)
    offsets = np.array([cspad.expose(photons, WAVELENGTH, i).common_mode for i in range(FRAMES)])
    signal = raw.mean(axis=0) - cspad.pedestal[0] - offsets.mean(axis=0).repeat(20, axis=1).repeat(30, axis=2)
    good = (cspad.kind == 0) & ~cspad.unbonded
    np.testing.assert_allclose(signal[good] / (7 * KEV), cspad.gain[0][good], atol=6 * 3.5 * 1.5 / np.sqrt(FRAMES) / 7 / KEV)
    without = cspad.unbonded & (cspad.kind == 0)
    assert np.sum(without) > 8 * 4 * 1 * 0.8
    assert np.abs(signal[without]).max() < 5 * 3.5 * 1.5 / np.sqrt(FRAMES)


def test_bad_pixels_are_as_bad_as_said(cspad: Electronics, darks: np.ndarray) -> None:
    kinds = {name: cspad.kind == number for number, name in enumerate(KINDS, 1)}
    for where in kinds.values():
        assert where.mean() == pytest.approx(0.01, abs=5 * np.sqrt(0.01 / where.size))
    mean, scatter = darks.mean(axis=0), darks.std(axis=0)
    assert np.all(scatter[kinds["stuck"]] == 0)
    assert mean[kinds["hot"]].min() > 1200 + 0.4 * 15000
    assert mean[kinds["cold"]].max() < 0.65 * 1200
    own = np.sqrt(np.maximum(scatter**2 - 10.0**2, 0))
    assert np.median(own[kinds["noisy"]]) > 5 * 3.5
    bright = cspad.expose(np.full(SHAPE, 200), WAVELENGTH, 0).raw
    assert np.abs(bright[kinds["dead"]] - cspad.pedestal[0][kinds["dead"]]).max() < 6 * 10


def test_a_frame_depends_on_its_index_alone(cspad: Electronics) -> None:
    other = electronics(CSPAD, dead=0.01, hot=0.01, cold=0.01, noisy=0.01, stuck=0.01)
    np.testing.assert_array_equal(cspad.dark(0, 3).raw, other.dark(0, 3).raw)
    photons = np.full(SHAPE, 3)
    np.testing.assert_array_equal(cspad.expose(photons, 1.3, 5).raw, other.expose(photons, 1.3, 5).raw)
    assert not np.array_equal(cspad.dark(0, 3).raw, cspad.dark(0, 4).raw)


def test_integrating_pixels_saturate() -> None:
    raw = electronics(CSPAD, stuck=0.0).expose(np.full(SHAPE, 3000), WAVELENGTH, 0).raw
    assert np.mean(raw == 16383) > 0.98


@pytest.mark.parametrize(
    ("photons", "code"), [(0, 0b00), (20, 0b00), (60, 0b01), (500, 0b01), (2000, 0b11), (9000, 0b11), (40000, 0b11)]
)
def test_stage_follows_the_charge(photons: int, code: int) -> None:
    pixels = electronics(JUNGFRAU)
    reading = pixels.expose(np.full(SHAPE, photons), WAVELENGTH, 1)
    good = pixels.kind == 0
    assert np.mean((reading.raw >> 14)[good] == code) > 0.999
    assert not np.any((reading.raw >> 14)[good] == 0b10)
    value = (reading.raw & 0x3FFF).astype(float)
    if photons == 40000:
        assert np.all(value[good] == 0)
        return
    stage = (0b00, 0b01, 0b11).index(code)
    expected = pixels.pedestal[stage] + pixels.gain[stage] * photons * KEV
    if stage == 0:
        expected = expected + reading.common_mode.repeat(20, axis=1).repeat(30, axis=2)
    pull = (value - expected)[good & (reading.raw >> 14 == code)] / pixels.noise[stage][good & (reading.raw >> 14 == code)]
    assert abs(pull.mean()) < 0.05
    assert pull.std() == pytest.approx(1.0, abs=0.05)


def test_stages_take_over_where_they_should() -> None:
    pixels = electronics(JUNGFRAU)
    good = pixels.kind == 0
    for photons in range(20, 45):
        stage = pixels.expose(np.full(SHAPE, photons), WAVELENGTH, 1).raw >> 14
        left = pixels.pedestal[0] + pixels.gain[0] * photons * KEV > 14500
        np.testing.assert_array_equal(stage[good] > 0, left[good])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": ({"pedestal": 1.0, "pedestal_spread": 0.0, "noise": 1.0, "gain": 0.0},)}, "gain 0"),
        ({"stages": JUNGFRAU["stages"][:2]}, "leaves_at"),
        ({"stages": JUNGFRAU["stages"], "bits": 15}, "14"),
    ],
)
def test_impossible_electronics(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RawSettings(**{**CSPAD, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(("preset", "darks"), [(CSPAD, ["dark.h5"]), (JUNGFRAU, ["dark_g0.h5", "dark_g1.h5", "dark_g2.h5"])])
def test_files_of_raw_frames(preset: dict[str, object], darks: list[str], tmp_path: Path) -> None:
    raw = {**preset, "asic": (30, 20), "darks": 2, "kept_photons": 1}
    settings = SimulationSettings(frames=2, detector=DETECTOR, raw=raw, seed=4)  # type: ignore[arg-type]
    run = simulate(settings, tmp_path)
    assert [path.name for path in run.darks] == darks
    assert run.gain is not None
    with h5py.File(run.truth) as truth, h5py.File(run.frames) as frames, h5py.File(run.gain) as gain:
        pixels = Electronics(settings.raw, make_layout(DETECTOR).detector, 4)  # type: ignore[arg-type]
        photons, wavelength = truth["raw/photons"][0], truth["wavelength"][0]
        layout = make_layout(DETECTOR)
        np.testing.assert_array_equal(frames["entry/data/data"][0], layout.assemble(pixels.expose(photons, wavelength, 0).raw))
        np.testing.assert_array_equal(truth["raw/gain"][()], gain["gain"][()])
        assert gain["gain"].attrs["unit"] == "ADU/keV"
        assert truth["raw/pedestal"].shape == (len(darks), *SHAPE)
        assert truth["raw/common_mode"].shape == (2, 8, 2, 2)
        np.testing.assert_array_equal(truth["raw/bad/hot"][()], np.argwhere(pixels.kind == 1 + KINDS.index("hot")))
    for stage, path in enumerate(run.darks):
        with h5py.File(path) as file:
            data = file["entry/data/data"][()]
        assert data.shape == (2, 160, 120)
        assert np.mean(data[0] >> 14 == (0b00, 0b01, 0b11)[stage]) > 0.99
