from __future__ import annotations

import bz2
import gzip
import lzma
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.io.sources.cbf_files import MAGIC, binary_section, mini_cbf, two_panels, write
from xfelproc.errors import ConfigError, DataError
from xfelproc.io.sources import SourceSettings, open_source
from xfelproc.io.sources.cbf import parse_mime, read_header

PIXELS = np.random.default_rng(3).integers(-2, 70000, (5, 7)).astype(np.int32)


@pytest.mark.parametrize("conversion", ["byte_offset", "packed", "packed_v2", "none"])
@pytest.mark.parametrize("md5", [True, False])
def test_every_compression_gives_the_pixels(tmp_path: Path, conversion: str, md5: bool) -> None:
    path = write(tmp_path / "a_0012.cbf", mini_cbf(PIXELS, conversion=conversion, md5=md5))
    with open_source(path) as source:
        frame = source.read(0, source=4)
    assert frame.pixels.shape == (1, 5, 7)
    assert frame.pixels.dtype == np.int32
    assert np.array_equal(frame.pixels[0], PIXELS)
    assert (frame.ref.source, frame.ref.index) == (4, 0)


@pytest.mark.parametrize(("suffix", "opener"), [(".gz", gzip.open), (".bz2", bz2.open), (".xz", lzma.open), ("", open)])
def test_wrapped_files_open_as_they_are_whatever_their_name(tmp_path: Path, suffix: str, opener: object) -> None:
    path = tmp_path / f"frame.dat{suffix}"
    with opener(path, "wb") as file:  # type: ignore[operator]
        file.write(mini_cbf(PIXELS))
    assert np.array_equal(open_source(path).read(0).pixels[0], PIXELS)
    path.rename(tmp_path / "misnamed.txt")
    assert np.array_equal(open_source(tmp_path / "misnamed.txt").read(0).pixels[0], PIXELS)


def test_memory_is_used_again_and_sources_can_be_pickled(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "a.cbf", mini_cbf(PIXELS)))
    first = source.read(0)
    second = source.read(0)
    assert not np.shares_memory(first.pixels, second.pixels)
    place = second.pixels.ctypes.data
    del second
    assert source.read(0).pixels.ctypes.data == place
    assert first.pixels.flags.writeable
    assert not first.mask.flags.writeable
    copy = pickle.loads(pickle.dumps(source))
    assert np.array_equal(copy.read(0).pixels, first.pixels)
    assert copy.experiment(0) == source.experiment(0)
    assert source.experiment(0).detector is first.detector
    again = open_source(source.path).read(0)
    assert again.detector is first.detector
    assert again.mask is first.mask


def test_there_is_one_frame(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "a.cbf", mini_cbf(PIXELS)))
    assert source.n_frames == 1
    for index in (1, -1):
        with pytest.raises(DataError, match="1 frame"):
            source.read(index)


def _refused(path: Path, match: str) -> None:
    with pytest.raises(DataError, match=match) as error:
        open_source(path).read(0)
    assert str(path) in str(error.value)


def test_missing_empty_and_foreign_files(tmp_path: Path) -> None:
    _refused(tmp_path / "absent.cbf", "no such file")
    _refused(write(tmp_path / "empty.cbf", b""), "empty")
    _refused(tmp_path, "folder")
    _refused(write(tmp_path / "text.cbf", b"hello"), "no image that can be read")
    _refused(write(tmp_path / "header.cbf", b"###CBF: VERSION 1.5\ndata_x\n"), "no binary section")


def test_damaged_binaries_are_named(tmp_path: Path) -> None:
    good = mini_cbf(PIXELS)
    start = good.index(MAGIC) + 4
    flipped = bytearray(good)
    flipped[start + 9] ^= 4
    _refused(write(tmp_path / "md5.cbf", bytes(flipped)), "checksum")
    _refused(write(tmp_path / "magic.cbf", good.replace(MAGIC, b"\x0c\x1a\x04\xd6")), "start marker")
    _refused(write(tmp_path / "short.cbf", good[: start + 20]), "cut short: 20 of")
    few = (
        mini_cbf(PIXELS, md5=False)
        .replace(b"Elements: 35", b"Elements: 42")
        .replace(b"Second-Dimension: 5", b"Second-Dimension: 6")
    )
    _refused(write(tmp_path / "few.cbf", few), "fewer than 42 pixels")
    _refused(write(tmp_path / "dims.cbf", good.replace(b"Elements: 35", b"Elements: 36")), "36 elements, but dimensions 7 x 5")
    _refused(write(tmp_path / "nosize.cbf", good.replace(b"X-Binary-Size:", b"X-Binary-Siza:")), "X-Binary-Size is 'missing'")
    _refused(write(tmp_path / "canon.cbf", good.replace(b"BYTE_OFFSET", b"CANONICAL")), "'canonical' is not read")
    _refused(write(tmp_path / "b64.cbf", good.replace(b"Encoding: BINARY", b"Encoding: BASE64")), "BASE64")
    wrapped = bz2.compress(good)
    _refused(write(tmp_path / "cut.cbf.bz2", wrapped[: len(wrapped) // 2]), "damaged or cut short")
    zipped = gzip.compress(good)
    _refused(write(tmp_path / "cut.cbf.gz", zipped[: len(zipped) // 2]), "damaged or cut short")


@pytest.mark.parametrize("conversion", ["byte_offset", "packed", "none"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_cut_gives_wrong_pixels(tmp_path: Path, conversion: str, data: st.DataObject) -> None:
    good = mini_cbf(PIXELS, conversion=conversion, md5=False)
    end = good.index(MAGIC) + 4 + len(binary_section(PIXELS, conversion, md5=False))
    cut = data.draw(st.integers(0, min(end, len(good)) - 1))
    path = write(tmp_path / "cut.cbf", good[:cut])
    try:
        pixels = open_source(path).read(0).pixels[0]
    except DataError:
        return
    assert np.array_equal(pixels, PIXELS)


def test_sections_are_found_past_binary_that_looks_like_text(tmp_path: Path) -> None:
    lure = (MAGIC + b"--CIF-BINARY-FORMAT-SECTION--\r\n;\r\n" + MAGIC).ljust(48, b"-")
    tricky = np.frombuffer(lure, dtype="<i4").reshape(3, 4).astype(np.int32)
    path = write(tmp_path / "lure.cbf", mini_cbf(tricky, conversion="none"))
    header = read_header(path, whole=True)
    assert len(header.sections) == 1
    assert header.complete
    assert "\x0c" not in header.text
    assert np.array_equal(open_source(path).read(0).pixels[0], tricky)


def test_sections_of_several_arrays(tmp_path: Path) -> None:
    header = read_header(write(tmp_path / "two.cbf", two_panels([(PIXELS[:3, :5], PIXELS[2:, 2:])], [0.0])), whole=True)
    assert [s.binary_id for s in header.sections] == [1, 2]
    assert not read_header(tmp_path / "two.cbf").complete


def test_narrow_integers_become_wider(tmp_path: Path) -> None:
    pixels = np.array([[0, 255], [7, 200]], dtype=np.int32)
    content = mini_cbf(pixels).replace(b'"signed 32-bit integer"', b'"unsigned 8-bit integer"')
    frame = open_source(write(tmp_path / "a.cbf", content)).read(0)
    assert frame.pixels.dtype == np.uint16
    assert np.array_equal(frame.pixels[0], pixels)


def test_a_setting_for_other_files_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.cbf", mini_cbf(PIXELS))
    with pytest.raises(ConfigError, match="data_path"):
        open_source(path, SourceSettings(data_path="/entry/data"))


def test_mime_flags() -> None:
    header = binary_section(PIXELS, "packed").split(MAGIC)[0]
    section = parse_mime(header.replace(b'PACKED"', b'PACKED"; "uncorrelated_sections"'), 0, 0, Path("x"))
    assert (section.conversion, section.correlated, section.flat) == ("packed", False, False)
    assert parse_mime(header.replace(b'PACKED"', b'PACKED"; "flat"'), 0, 0, Path("x")).flat


def test_settings_reach_the_frame(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", (PIXELS < 100).astype(np.uint8))
    settings_ = SourceSettings(mask=str(tmp_path / "m.npy"), wavelength=1.1, distance=99.0, trusted_range=(0, 50000))
    source = open_source(write(tmp_path / "a.cbf", mini_cbf(PIXELS)), settings_)
    frame = source.read(0)
    assert frame.beam.wavelength == 1.1
    assert frame.detector.panels[0].origin[2] == pytest.approx(-99.0)
    assert frame.trusted.tolist() == [[0, 50000]]
    assert np.array_equal(frame.mask[0] != 0, PIXELS < 100)
    assert any("wavelength from the settings" in note for note in source.summary().notes)
