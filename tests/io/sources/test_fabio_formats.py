from __future__ import annotations

import gzip
import struct
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


def mar345(pixels: np.ndarray) -> bytes:
    """A mar345 file: 16 integers and text, then packed pixels."""
    from fabio.ext.mar345_IO import compress_pck

    n = len(pixels)
    ints = struct.pack("<16i", 1234, n, 0, 1, 1, n * n, 150, 150, 1541800, 200000, 3000, 3500, 0, 0, 0, 0)
    text = b"mar research\nPROGRAM        x\nCENTER         X 20.500 Y 19.250\nTIME           60.00\nEND OF HEADER\n"
    return (ints.ljust(128, b"\0") + text).ljust(4096) + bytes(compress_pck(pixels.astype(np.uint32)))


def test_mar345(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).poisson(5, (40, 40))
    path = tmp_path / "plate_004.mar3450"
    path.write_bytes(mar345(pixels))
    source = open_source(path)
    frame = source.read(0)
    assert np.array_equal(frame.pixels[0], pixels)
    experiment = source.experiment(0)
    assert detector_distance(experiment.detector, experiment.beam) == pytest.approx(200.0)
    assert beam_center(experiment.detector, experiment.beam) == pytest.approx((20.5, 19.25))
    assert experiment.detector.panels[0].pixel_size == (0.15, 0.15)
    assert experiment.beam.wavelength == pytest.approx(1.5418)
    assert experiment.scan is not None
    assert (experiment.scan.oscillation, experiment.scan.image_range, experiment.scan.exposure_time) == ((3.0, 0.5), (4, 4), 60.0)
    whole = mar345(pixels)
    for cut in (4300, len(whole) - 2):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match="fewer than 1600 pixels") as error:
            open_source(path).read(0)
        assert str(path) in str(error.value)


def test_mar345_that_states_nothing() -> None:
    assert read_mar345({}, (2300, 2300), 9).missing == ("pixel size", "distance", "wavelength")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.edf"
    fabio.edfimage.EdfImage(data=PIXELS).write(str(path))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="cut short") as error:
        open_source(path).read(0)
    assert str(path) in str(error.value)
