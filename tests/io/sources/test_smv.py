from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from xfelproc.errors import DataError
from xfelproc.io.sources import SourceSettings, open_source
from xfelproc.io.sources.overrides import beam_center

PIXELS = np.arange(1, 25, dtype=np.uint16).reshape(4, 6) * 1000


def smv(pixels: np.ndarray = PIXELS, **fields: object) -> bytes:
    values = {
        "HEADER_BYTES": "  512",
        "DIM": 2,
        "BYTE_ORDER": "little_endian",
        "TYPE": "unsigned_short",
        "SIZE1": pixels.shape[1],
        "SIZE2": pixels.shape[0],
        "PIXEL_SIZE": 0.1,
        "DISTANCE": 150.0,
        "WAVELENGTH": 1.2,
        "BEAM_CENTER_X": 0.15,
        "BEAM_CENTER_Y": 0.35,
        "OSC_START": 30.0,
        "OSC_RANGE": 0.5,
        "TIME": 2.0,
        **fields,
    }
    text = "{\n" + "".join(f"{k}={v};\n" for k, v in values.items() if v is not None) + "}\n"
    order = ">" if values["BYTE_ORDER"] == "big_endian" else "<"
    return text.encode().ljust(512) + pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()


def _open(folder: Path, settings: SourceSettings | None = None, **fields: object) -> object:
    path = folder / "adsc_1_003.img"
    path.write_bytes(smv(**fields))  # type: ignore[arg-type]
    return open_source(path, settings)


@pytest.mark.parametrize("order", ["little_endian", "big_endian"])
def test_pixels_of_both_byte_orders(tmp_path: Path, order: str) -> None:
    source = _open(tmp_path, BYTE_ORDER=order)
    frame = source.read(0)  # type: ignore[attr-defined]
    assert frame.pixels.dtype == np.dtype("u2")
    assert frame.pixels.dtype.isnative
    assert np.array_equal(frame.pixels[0], PIXELS)
    assert frame.pixels.flags.writeable


@pytest.mark.parametrize(
    ("fields", "center"),
    [
        ({}, (3.5, 1.5)),  # mm, X along slow
        ({"DENZO_XBEAM": 0.1, "DENZO_YBEAM": 0.2}, (2.0, 1.0)),
        ({"BEAMLINE": "TimePix_SU", "BEAM_CENTER_X": 2.5, "BEAM_CENTER_Y": 1.0}, (2.5, 1.0)),
        ({"BEAM_CENTER_X": None}, (3.0, 2.0)),
    ],
)
def test_beam_centres(tmp_path: Path, fields: dict[str, object], center: tuple[float, float]) -> None:
    experiment = _open(tmp_path, **fields).experiment(0)  # type: ignore[attr-defined]
    assert beam_center(experiment.detector, experiment.beam) == pytest.approx(center)


def test_models(tmp_path: Path) -> None:
    source = _open(tmp_path)
    experiment = source.experiment(0)  # type: ignore[attr-defined]
    assert experiment.detector.panels[0].origin[2] == -150.0
    assert experiment.detector.panels[0].trusted_range == (1.0, 65535.0)
    assert experiment.beam.wavelength == 1.2
    assert (experiment.scan.oscillation, experiment.scan.image_range) == ((30.0, 0.5), (3, 3))
    counting = _open(tmp_path, BEAMLINE="TIMEPIX_SU").experiment(0)  # type: ignore[attr-defined]
    assert counting.detector.panels[0].trusted_range[0] == 0.0


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"TYPE": "complex"}, "'complex' are not read"),
        ({"SIZE1": None}, "SIZE1 and SIZE2 are missing"),
        ({"WAVELENGTH": None}, "wavelength not stated"),
        ({"SIZE2": 40}, "cut short: 48 of 480"),
    ],
)
def test_bad_headers(tmp_path: Path, fields: dict[str, object], match: str) -> None:
    with pytest.raises(DataError, match=match):
        _open(tmp_path, **fields).read(0)  # type: ignore[attr-defined]


def test_cut_header(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(smv()[:300])
    with pytest.raises(DataError, match="header is cut short"):
        open_source(path)
