"""SMV images: ADSC detectors, and others that took over their header of ``KEY=value;`` lines."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.io.sources.compression import read_all, read_head
from xfelproc.io.sources.header import Header, facing_detector
from xfelproc.io.sources.image import ImageSource, frame_number
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.models.experiment import Beam, Experiment, Goniometer, Scan

_TYPES = {
    "unsigned_short": "u2",
    "unsigned short int": "u2",
    "signed_short": "i2",
    "long": "i4",
    "unsigned_long": "u4",
    "float": "f4",
}


class SmvHeader:
    """The ``KEY=value;`` pairs of an SMV file.

    Raises
    ------
    DataError
        If the header is cut short or does not say how the pixels are stored.
    """

    def __init__(self, head: bytes, path: str) -> None:
        found = re.match(rb"\{\s*HEADER_BYTES\s*=\s*(\d+)\s*;", head)
        self.path = path
        self.size = int(found[1]) if found else 0
        text = head[: self.size].decode("latin-1")
        self.values: dict[str, str] = dict(re.findall(r"^\s*(\w+)\s*=\s*(.*?)\s*;", text.lstrip("{"), re.M))
        if len(head) < self.size or self.size == 0:
            raise DataError("the SMV header is cut short: copy it again from its origin, or leave it out", path)

    def number(self, *names: str) -> float | None:
        """Return the first of these values that is a number."""
        for name in names:
            try:
                return float(self.values[name])
            except (KeyError, ValueError):
                continue
        return None

    @property
    def beamline(self) -> str:
        """BEAMLINE in lower case."""
        return self.values.get("BEAMLINE", "").lower()

    @property
    def shape(self) -> tuple[int, int]:
        """Pixels (slow, fast)."""
        size = self.number("SIZE2"), self.number("SIZE1")
        if size[0] is None or size[1] is None or min(size[0], size[1]) < 1:
            raise DataError("SIZE1 and SIZE2 are missing in the SMV header: it is damaged", self.path)
        return (int(size[0]), int(size[1]))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored pixels, byte order included."""
        name = self.values.get("TYPE", "unsigned_short").lower()
        if name not in _TYPES:
            raise DataError(f"pixels of TYPE {name!r} are not read (known: {', '.join(_TYPES)}): convert the file", self.path)
        big = "big" in self.values.get("BYTE_ORDER", "little_endian").lower()
        return np.dtype(_TYPES[name]).newbyteorder(">" if big else "<")


class SmvSource(ImageSource):
    """An SMV file."""

    def __init__(self, path: str | Path, settings: SourceSettings) -> None:
        super().__init__(path, settings)
        self.header = SmvHeader(read_head(Path(path), 65536), self.path)
        self.shape, self.stored = self.header.shape, self.header.dtype

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the pixels."""
        return self.stored.newbyteorder("=")

    def read_header(self) -> Header:
        """Return the models of the header."""
        return read_smv(self.header, frame_number(Path(self.path)))

    def read_pixels(self, index: int) -> NDArray[Any]:
        """Return the pixels (slow, fast)."""
        content = read_all(Path(self.path))
        count = self.shape[0] * self.shape[1]
        if len(content) < self.header.size + count * self.stored.itemsize:
            raise DataError(
                f"the pixels are cut short: {len(content) - self.header.size} of {count * self.stored.itemsize} bytes are there; "
                "copy it again from its origin, or leave it out",
                self.path,
            )
        stored = np.frombuffer(content, dtype=self.stored, count=count, offset=self.header.size)
        return stored.reshape(self.shape)


def _center(header: SmvHeader, shape: tuple[int, int], pixel: float) -> tuple[float, float, str]:
    """Return the beam centre in mm along fast and slow, and a note on how it was found.

    Beamlines disagree on BEAM_CENTER_X and _Y. DENZO_XBEAM and _YBEAM, where written, have one meaning: mm along slow and fast.
    Without them X counts along slow and Y along fast (Mosflm's frame), as ADSC's own headers have it. Timepix headers count
    pixels, X along fast.
    """
    x, y = header.number("BEAM_CENTER_X"), header.number("BEAM_CENTER_Y")
    denzo = header.number("DENZO_XBEAM"), header.number("DENZO_YBEAM")
    if x is not None and y is not None and ("timepix" in header.beamline or max(x, y) > max(shape) * pixel):
        return x * pixel, y * pixel, "BEAM_CENTER_X and _Y taken as pixels along fast and slow"
    if denzo[0] is not None and denzo[1] is not None:
        return denzo[1], denzo[0], "beam centre from DENZO_XBEAM and _YBEAM, mm along slow and fast"
    if x is not None and y is not None:
        return y, x, "BEAM_CENTER_X and _Y taken as mm along slow and fast (Mosflm's frame): beamlines differ, look at a frame"
    return shape[1] * pixel / 2, shape[0] * pixel / 2, "beam centre not stated: the middle of the detector assumed"


def read_smv(header: SmvHeader, number: int) -> Header:
    """Return the models that an SMV header states: the detector faces the beam, fast along +x, slow along -y."""
    missing, notes = [], []
    pixel = header.number("PIXEL_SIZE") or 0.0
    distance, wavelength = header.number("DISTANCE") or 0.0, header.number("WAVELENGTH") or 0.0
    missing = [n for n, v in (("pixel size", pixel), ("distance", distance), ("wavelength", wavelength)) if v <= 0]
    pixel = pixel if pixel > 0 else 1.0
    shape = header.shape
    fast, slow, note = _center(header, shape, pixel)
    notes = [note, "sensor not stated: no parallax (set sensor_material and sensor_thickness)"]
    tilt = header.number("TWOTHETA") or 0.0
    if abs(tilt) > 0.05:
        notes.append(f"TWOTHETA {tilt:g} degrees is not used, its axis is not stated: give a geometry file")
    high = header.number("CCD_IMAGE_SATURATION", "SATURATED_VALUE")
    if high is None:
        high = float(np.iinfo(header.dtype).max) if header.dtype.kind in "ui" else float("inf")
        notes.append(f"saturation not stated: {high:g} assumed")
    pedestal = header.number("IMAGE_PEDESTAL") or 0.0
    # in a counting detector 0 is a measurement; a CCD has an offset, and 0 only where there is no pixel
    low = 0.0 if "timepix" in header.beamline else 1.0
    detector = facing_detector((shape[1], shape[0]), (pixel, pixel), (fast / pixel, slow / pixel), distance, (low, high), pedestal)
    goniometer, scan = _rotation(header, number)
    notes.append("polarisation and spindle not stated: fraction 0.999 in the horizontal plane and +x assumed")
    if scan is None:
        notes.append("no oscillation: a still")
    kind = header.values.get("BEAMLINE", "") or header.values.get("DETECTOR_SN", "")
    return Header(
        f"SMV ({kind})" if kind else "SMV",
        Experiment(Beam(wavelength), detector, goniometer, scan),
        "pixels of value 0 are not measured; no mask is stored" if low else "no bad pixels are marked",
        tuple(notes),
        tuple(missing),
    )


def _rotation(header: SmvHeader, number: int) -> tuple[Goniometer | None, Scan | None]:
    start, width = header.number("OSC_START", "PHI"), header.number("OSC_RANGE") or 0.0
    if start is None:
        return None, None
    name = header.values.get("AXIS", "phi") or "phi"
    goniometer = Goniometer(((1.0, 0.0, 0.0),), (start,), (name,), 0)
    exposure = header.number("TIME") or 0.0
    return goniometer, Scan((start, width), (number, number), exposure) if width else None
