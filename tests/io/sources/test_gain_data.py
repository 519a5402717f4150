from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from xfelproc.errors import DataError
from xfelproc.io.sources import open_source
from xfelproc.io.sources.settings import SourceSettings

GEOM = """
photon_energy = 9500
clen = 0.1
res = 10000
data = /entry/data
dim0 = %
dim1 = ss
dim2 = fs
"""
PANEL = "{0}/min_fs = {1}\n{0}/max_fs = {2}\n{0}/min_ss = 0\n{0}/max_ss = 69\n{0}/corner_x = {1}\n{0}/corner_y = 0\n"


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """A file of frames with an array of gain stages beside them, and its geometry of two panels side by side."""
    rng = np.random.default_rng(1)
    with h5py.File(tmp_path / "frames.h5", "w") as file:
        file["entry/data"] = rng.integers(0, 1000, (3, 70, 160)).astype(np.uint16)
        file["entry/gain"] = rng.integers(0, 3, (3, 70, 160)).astype(np.uint8)
        file["entry/short"] = np.zeros((2, 70, 160), np.uint8)
    (tmp_path / "two.geom").write_text(GEOM + PANEL.format("p0", 0, 79) + PANEL.format("p1", 80, 159))
    return tmp_path / "frames.h5"


def settings(path: Path, gain_data: str | None) -> SourceSettings:
    return SourceSettings(geometry=path.parent / "two.geom", data_path="/entry/data", gain_data=gain_data)


def test_gain_stages_come_with_the_pixels(frames: Path) -> None:
    with h5py.File(frames) as file:
        data, gain = file["entry/data"][()], file["entry/gain"][()]
    with open_source(frames, settings(frames, "/entry/gain")) as source:
        for index in (2, 0):
            frame = source.read(index)
            assert frame.stages is not None
            assert frame.stages.shape == frame.pixels.shape == (2, 70, 80)
            for panel in range(2):
                here = np.s_[index, :, 80 * panel : 80 * panel + 80]
                assert np.array_equal(frame.pixels[panel], data[here])
                assert np.array_equal(frame.stages[panel], gain[here])
    assert open_source(frames, settings(frames, None)).read(0).stages is None


def test_what_is_wrong_with_it_is_said(frames: Path) -> None:
    with pytest.raises(DataError, match=r"input\.gain_data has 2 frames, the pixels 3"):
        open_source(frames, settings(frames, "/entry/short"))
    with pytest.raises(DataError, match="there is no dataset /entry/none"):
        open_source(frames, settings(frames, "/entry/none"))
