from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from xfelproc.errors import DataError
from xfelproc.io.sources import open_source
from xfelproc.io.sources.overrides import beam_center

PIXELS = np.arange(12, dtype=np.uint16).reshape(3, 4)
FIELDS = {
    28: 1234,
    80: 4,
    84: 3,
    88: 2,
    104: 60000,
    640: 210000,
    644: 1500,
    648: 2250,
    656: 1000,
    684: 10000,
    696: 200000,
    716: 10500,
    772: 79000,
    776: 79000,
    908: 97000,
}


def marccd(order: str = "<", **changes: int) -> bytes:
    head = bytearray(4096)
    head[:4] = b"II*\x00" if order == "<" else b"MM\x00*"
    for offset, value in {**FIELDS, **{int(k[1:]): v for k, v in changes.items()}}.items():
        struct.pack_into(f"{order}i", head, 1024 + offset, value)
    return bytes(head) + PIXELS.astype(f"{order}u2").tobytes()


@pytest.mark.parametrize("order", ["<", ">"])
def test_header_and_pixels(tmp_path: Path, order: str) -> None:
    path = tmp_path / "lyso.0042"
    path.write_bytes(marccd(order))
    source = open_source(path)
    experiment = source.experiment(0)
    panel = experiment.detector.panels[0]
    assert (panel.image_size, panel.pixel_size) == ((4, 3), (0.079, 0.079))
    assert panel.origin == pytest.approx((-1.5 * 0.079, 2.25 * 0.079, -200.0))
    assert beam_center(experiment.detector, experiment.beam) == pytest.approx((1.5, 2.25))
    assert panel.trusted_range == (1.0, 60000.0)
    assert experiment.beam.wavelength == 0.97
    assert experiment.scan is not None
    assert experiment.scan.oscillation == pytest.approx((10.0, 0.5))
    assert np.array_equal(source.read(0).pixels[0], PIXELS)


def test_still_and_missing_distance(tmp_path: Path) -> None:
    path = tmp_path / "lyso.mccd"
    path.write_bytes(marccd(_716=10000, _640=0, _696=0))
    source = open_source(path)
    assert source.summary().experiment.scan is None
    with pytest.raises(DataError, match="distance not stated"):
        source.read(0)


def test_damaged(tmp_path: Path) -> None:
    path = tmp_path / "lyso.mccd"
    path.write_bytes(marccd()[:-3])
    with pytest.raises(DataError, match="21 of 24 bytes"):
        open_source(path).read(0)
    path.write_bytes(marccd()[:2000])
    with pytest.raises(DataError, match="header is cut short"):
        open_source(path)
    path.write_bytes(marccd(_88=7))
    with pytest.raises(DataError, match="7 bytes"):
        open_source(path)
