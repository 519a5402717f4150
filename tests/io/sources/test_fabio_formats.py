from __future__ import annotations

import gzip
from pathlib import Path

import fabio.edfimage
import fabio.tifimage
import numpy as np
import pytest

from xfelproc.errors import ConfigError, DataError
from xfelproc.io.sources import SourceSettings, open_source
from xfelproc.io.sources.fabio_formats import read_mar345
from xfelproc.io.sources.overrides import beam_center, detector_distance

PIXELS = np.arange(20, dtype=np.int32).reshape(4, 5)


def test_other_formats_have_pixels_and_say_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.edf"
    fabio.edfimage.EdfImage(data=PIXELS).write(str(path))
    source = open_source(path)
    summary = source.summary()
    assert summary.format.startswith("edf")
    assert any("pixel size not stated" in note for note in summary.notes)
    with pytest.raises(DataError, match="geometry file"):
        source.read(0)


def test_a_wrapped_tiff(tmp_path: Path) -> None:
    fabio.tifimage.TifImage(data=PIXELS.astype(np.uint16)).write(str(tmp_path / "a.tif"))
    (tmp_path / "a.tif.gz").write_bytes(gzip.compress((tmp_path / "a.tif").read_bytes()))
    for name in ("a.tif", "a.tif.gz"):
        source = open_source(tmp_path / name)
        assert source.summary().dtype == "uint16"
        assert np.array_equal(source.read_pixels(0), PIXELS)  # type: ignore[attr-defined]


def test_geometry_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from xfelproc.io.sources import image
    from xfelproc.models.experiment import Beam, Detector, Experiment, Panel

    path = tmp_path / "a.edf"
    fabio.edfimage.EdfImage(data=PIXELS).write(str(path))
    left = Panel("l", (1, 0, 0), (0, -1, 0), (-0.3, 0.2, -80), (0.1, 0.1), (2, 4))
    right = Panel("r", (1, 0, 0), (0, -1, 0), (0.1, 0.2, -80), (0.1, 0.1), (3, 4), raw_image_offset=(2, 0))
    given = {"d": Detector((left, right))}
    monkeypatch.setattr(image, "load_reference", lambda settings: Experiment(Beam(1.0), given["d"]))
    source = open_source(path, SourceSettings(geometry=Path("x.geom")))
    frame = source.read(0)
    assert frame.pixels.shape == (2, 4, 3)
    assert np.array_equal(frame.pixels[0, :, :2], PIXELS[:, :2])
    assert np.array_equal(frame.pixels[1], PIXELS[:, 2:])
    assert (frame.mask[0, :, 2] == 128).all()
    given["d"] = Detector((left,))
    with pytest.raises(ConfigError, match=r"\(4, 5\)|\(2, 4\)"):
        open_source(path, SourceSettings(geometry=Path("x.geom"))).read(0)


def test_mar345_header() -> None:
    fields = {
        "pixel_length": 150.0,
        "pixel_height": 150.0,
        "distance": 200.0,
        "wavelength": 1.54,
        "centerx": 1150.0,
        "centery": 1160.0,
        "phi_start": 3.0,
        "phi_end": 3.5,
        "exptime_sec": 60.0,
    }
    header = read_mar345(fields, (2300, 2300), 9)
    experiment = header.experiment
    assert detector_distance(experiment.detector, experiment.beam) == pytest.approx(200.0)
    assert beam_center(experiment.detector, experiment.beam) == pytest.approx((1150, 1160))
    assert experiment.scan is not None
    assert experiment.scan.oscillation == (3.0, 0.5)
    assert header.missing == ()
    assert read_mar345({}, (2300, 2300), 9).missing == ("pixel size", "distance", "wavelength")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.edf"
    fabio.edfimage.EdfImage(data=PIXELS).write(str(path))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="cut short") as error:
        open_source(path).read(0)
    assert str(path) in str(error.value)
