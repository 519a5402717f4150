from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.run.small_frames import GEOM
from tests.stages.fakes import Quiet
from xfelproc.algorithms.calibration import Darks
from xfelproc.errors import ConfigError, DataError
from xfelproc.io.calibration_file import read_calibration, write_calibration
from xfelproc.models.calibration import DetectorConstants
from xfelproc.models.conventions import PixelMask
from xfelproc.run.averaging import FrameChoice
from xfelproc.run.calibrating import run_dark, run_gain

PEDESTAL, NOISE, GAIN, STAGE_1 = 700.0, 4.0, 30.0, 5000.0
HOT, DEAD = (20, 30), (40, 100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dark runs of stages 0 and 1 (in bit 14), and frames with photons."""
    path, rng = tmp_path_factory.mktemp("raw"), np.random.default_rng(4)

    def write(name: str, values: np.ndarray, code: int = 0) -> None:
        raw = np.rint(values).astype(np.uint16) | np.uint16(code << 14)
        with h5py.File(path / name, "w") as file:
            file.create_dataset("data", data=raw, chunks=(1, 50, 120))

    shape = (40, 50, 120)
    pixel = rng.normal(0, 20, shape[1:])
    dark = rng.normal(PEDESTAL + pixel, NOISE, shape)
    dark[:, *HOT] += 2000
    dark[:, *DEAD] = 300
    dark[7, 5, 5] = 5000  # a cosmic ray
    write("dark0.h5", dark)
    write("dark1.h5", rng.normal(STAGE_1, 3.0, shape), code=1)
    write("light.h5", rng.normal(PEDESTAL + pixel, NOISE, shape) + GAIN * rng.poisson(3.0, shape))
    (path / "frames.geom").write_text(GEOM)
    return path


def choice(folder: Path, *names: str, driver: str = "inline", more: tuple[str, ...] = ()) -> FrameChoice:
    given = (f"input.geometry={folder / 'frames.geom'}", *more)
    return FrameChoice(tuple(str(folder / name) for name in names), given, driver=driver, workers=2)


def test_dark_and_gain(folder: Path, tmp_path: Path) -> None:
    out, reporter = tmp_path / "constants.h5", Quiet()
    lines = run_dark(choice(folder, "dark0.h5"), Darks(), out, reporter)
    assert any("40 frames" in line for line in lines)
    found = read_calibration(out)
    assert found.pedestal is not None
    assert found.noise is not None
    assert found.mask is not None
    assert found.pedestal.shape == (1, 2, 50, 60)
    assert abs(np.median(found.noise) - NOISE) < 0.1
    assert abs(found.pedestal[0, 0, 5, 5] - PEDESTAL) < 100  # without the cosmic ray
    assert found.mask[0, 20, 30] & PixelMask.HOT
    assert found.mask[1, 40, 40]
    assert np.count_nonzero(found.mask) <= 4
    assert not (tmp_path / "constants.h5.parts").exists()

    both = tmp_path / "both.h5"
    lines = run_gain(choice(folder, "light.h5", more=(f'input.calibration="{out}"',)), both, reporter)
    whole = read_calibration(both)
    assert whole.gain is not None
    assert whole.gain.shape == (1, 2)
    np.testing.assert_allclose(whole.gain, GAIN, rtol=0.03)
    np.testing.assert_array_equal(whole.pedestal, found.pedestal)
    assert any("ADU/photon" in line for line in lines)

    median = (f'input.calibration="{out}"', "calibrate.common_mode=median")
    run_gain(choice(folder, "light.h5", more=median), both, reporter)
    gain = read_calibration(both).gain
    assert gain is not None
    np.testing.assert_allclose(gain, GAIN, rtol=0.05)


def test_stages_together_and_one_by_one(folder: Path, tmp_path: Path) -> None:
    bits = ('calibrate.gain_stages={method="bits", stages=[0, 1, -1, -1]}',)
    together, apart = tmp_path / "together.h5", tmp_path / "apart.h5"
    run_dark(choice(folder, "dark0.h5", "dark1.h5", driver="pool", more=bits), Darks(), together, Quiet())
    lines = run_dark(choice(folder, "dark0.h5", more=bits), Darks(), apart, Quiet())
    assert any("gain stages 1 are not measured yet" in line for line in lines)
    assert read_calibration(apart).coding is None
    reporter = Quiet()
    run_dark(choice(folder, "dark1.h5", more=bits), Darks(), apart, reporter)
    assert any("is there" in line for line in reporter.lines)
    one, two = read_calibration(together), read_calibration(apart)
    assert one.pedestal is not None
    assert one.coding is not None
    assert two.coding is not None
    assert one.n_stages == 2
    assert abs(np.median(one.pedestal[1]) - STAGE_1) < 1.0
    np.testing.assert_allclose(one.pedestal, two.pedestal, atol=1.0)  # groups of frames differ, so what is left out may
    np.testing.assert_allclose(one.noise, two.noise, atol=1.0)


def test_bad_darks(folder: Path, tmp_path: Path) -> None:
    few = choice(folder, "dark0.h5", more=("input.frames=0:5",))
    with pytest.raises(DataError, match="5 dark frames of gain stage 0, at least 10"):
        run_dark(few, Darks(), tmp_path / "a.h5", Quiet())
    with pytest.raises(ConfigError, match="calibrate dark"):
        run_gain(choice(folder, "light.h5"), tmp_path / "a.h5", Quiet())
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.create_dataset("pedestal", data=np.zeros((1, 2, 4, 4), np.float32))
        file.create_dataset("noise", data=np.ones((1, 2, 4, 4), np.float32))
        file.attrs["format"] = 1
    wrong = choice(folder, "light.h5", more=(f'input.calibration="{tmp_path / "other.h5"}"',))
    with pytest.raises((DataError, ConfigError), match=r"\(2, 4, 4\)|shape"):
        run_gain(wrong, tmp_path / "b.h5", Quiet())


def test_pixels_without_noise_do_not_matter(folder: Path, tmp_path: Path) -> None:
    """A pixel that is stuck in another stage has neither pedestal nor noise in the first."""
    out = tmp_path / "constants.h5"
    rng = np.random.default_rng(1)
    noise = np.full((1, 2, 50, 60), NOISE, np.float32)
    noise[0, 0, 9, 9] = np.nan
    pedestal = np.full_like(noise, PEDESTAL)
    pedestal[0, 0, 9, 9] = np.nan
    write_calibration(out, DetectorConstants(pedestal=pedestal, noise=noise))
    raw = np.rint(rng.normal(PEDESTAL, NOISE, (20, 50, 120)) + GAIN * rng.poisson(3.0, (20, 50, 120))).astype(np.uint16)
    with h5py.File(tmp_path / "light.h5", "w") as file:
        file.create_dataset("data", data=raw)
    given = (f"input.geometry={folder / 'frames.geom'}", f'input.calibration="{out}"')
    run_gain(FrameChoice((str(tmp_path / "light.h5"),), given, driver="inline"), tmp_path / "gain.h5", Quiet())
    gain = read_calibration(tmp_path / "gain.h5").gain
    assert gain is not None
    np.testing.assert_allclose(gain, GAIN, rtol=0.05)
