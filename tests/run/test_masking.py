from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.run.small_frames import write_frames
from tests.stages.fakes import Quiet
from xfelproc.algorithms.calibration.calibrants import CALIBRANTS
from xfelproc.algorithms.calibration.masks import StaticMask
from xfelproc.algorithms.calibration.powder import Powder
from xfelproc.cli.calibrate import options
from xfelproc.errors import ConfigError, DataError
from xfelproc.run.averaging import FrameChoice, run_average
from xfelproc.run.masking import run_mask, run_powder, spacings_of

NOTHING = FrameChoice(())


@pytest.fixture(scope="module")
def average(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("average")
    frames, geometry, _ = write_frames(folder)
    run_average(FrameChoice((str(frames),), (f"input.geometry={geometry}",), driver="inline"), folder / "a.h5", Quiet())
    return folder / "a.h5"


def test_mask_of_an_average(average: Path, tmp_path: Path) -> None:
    out = tmp_path / "mask.h5"
    np.save(tmp_path / "mine.npy", np.eye(50, 120, dtype=np.uint8))
    lines = run_mask(NOTHING, average, StaticMask(edge_pixels=1), [str(tmp_path / "mine.npy")], out, Quiet())
    assert any("mask0_badbits = 0xffffffff" in line for line in lines)
    with h5py.File(out) as file:
        assert file["mask"].shape == (50, 120)
        assert np.all(file["mask"][0] != 0)
        assert np.count_nonzero(file["mask"][1:-1, 1:59]) == 48


def test_wrong_requests(average: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give either an average or frames"):
        run_mask(FrameChoice(("a.h5",)), average, StaticMask(), (), tmp_path / "m.h5", Quiet())
    with pytest.raises(ConfigError, match=r"written as \.geom, \.expt, \.nxs"):
        run_powder(NOTHING, average, Powder(), (3.0,), False, tmp_path / "a.txt", Quiet())
    with pytest.raises(DataError, match="pieces of rings are found"):
        run_powder(NOTHING, average, Powder(), CALIBRANTS["LaB6"], True, None, Quiet())
    with pytest.raises(ConfigError, match="known are ice, silver behenate, LaB6, CeO2"):
        spacings_of("sugar", ())
    with pytest.raises(ConfigError, match="give one of them"):
        spacings_of("ice", (3.0,))
    with pytest.raises(ConfigError, match="--n-sigma 1: "):
        options(StaticMask, n_sigma=1)
    assert spacings_of("AgBeh", ()) == CALIBRANTS["silver behenate"]
    assert spacings_of(None, (4.0, 2.0)) == (4.0, 2.0)
