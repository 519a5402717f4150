"""Formats that fabio decodes: mar345 with its geometry, and all others without."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.io.sources.compression import check_file, is_wrapped, read_all
from xfelproc.io.sources.header import Header, facing_detector
from xfelproc.io.sources.image import ImageSource, frame_number
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.kernels.cbf import packed_length
from xfelproc.models.experiment import Beam, Experiment, Goniometer, Scan

# what fabio's readers raise on files that are damaged or none of theirs
_ERRORS = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, EOFError, NotImplementedError, RuntimeError)


_CCP4_WIDTHS = np.array([0, 4, 5, 6, 7, 8, 16, 32], dtype=np.int64)


@contextmanager
def _unwrapped(path: Path) -> Iterator[Path]:
    """Give a plain file: the path itself, or an unwrapped copy under its own suffix, removed afterwards."""
    if not is_wrapped(path):
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix="_" + path.stem) as copy:
        copy.write(read_all(path))
        copy.flush()
        yield Path(copy.name)


class _Messages(logging.Handler):
    """Collects what fabio logs: it fills what is missing at the end of a file with zeros and only says so there."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []
        self.logger = logging.getLogger("fabio")

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())

    def incomplete(self) -> str:
        """Return the message that says so if the file is cut short, else an empty string."""
        words = ("incomplete", "truncat", "too short", "filling", "missing data", "end of file", "padding")
        return next((t for t in self.texts if any(w in t.lower() for w in words)), "")

    def __enter__(self) -> _Messages:
        self.propagate, self.logger.propagate = self.logger.propagate, False
        self.logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.logger.removeHandler(self)
        self.logger.propagate = self.propagate


def _other_use(path: Path) -> str:
    """Say what a file is for that is no image, by its suffix; empty if unknown."""
    uses = {".geom": "a geometry: name it in input.geometry", ".expt": "a geometry: name it in input.geometry"}
    uses |= {".toml": "a job file: xfelproc run takes it", ".stream": "results of CrystFEL", ".refl": "reflections of DIALS"}
    return uses.get(path.suffix.lower(), "")


def _open(path: Path) -> Any:
    """Return fabio's image.

    Raises
    ------
    DataError
        If fabio does not read the file.
    """
    import fabio

    check_file(path)
    with _unwrapped(path) as plain, _Messages() as messages:
        try:
            image = fabio.open(str(plain))
            image.data  # noqa: B018  (decoded here, while the unwrapped copy exists)
        except _ERRORS as error:
            raise DataError(
                f"is no image that can be read ({_other_use(path) or error}): see that it is complete and of a known format", path
            ) from error
    if messages.incomplete():
        raise DataError(f"is cut short ({messages.incomplete()}): copy it again from its origin, or leave it out", path)
    if image.data is None or np.ndim(image.data) != 2:
        raise DataError("holds no two-dimensional image: see that it is complete and of a known format", path)
    return image


class FabioSource(ImageSource):
    """A file that fabio decodes. The header is read with the first frame: these formats are small."""

    def __init__(self, path: str | Path, settings: SourceSettings) -> None:
        super().__init__(path, settings)
        image = _open(Path(path))
        self.kind = type(image).__name__.removesuffix("Image").removesuffix("image").lower()
        self.fields: dict[str, Any] = dict(image.header)
        self.shape: tuple[int, int] = tuple(image.data.shape)
        self._dtype = _native(np.dtype(image.data.dtype))
        self.n_frames = max(1, int(image.nframes))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the pixels."""
        return self._dtype

    def read_header(self) -> Header:
        """Return the models of the header, as far as the format is known."""
        fast, slow = self.shape[1], self.shape[0]
        if self.kind == "mar345":
            return read_mar345(self.fields, (fast, slow), frame_number(Path(self.path)))
        detector = facing_detector((fast, slow), (1.0, 1.0), (fast / 2, slow / 2), 0.0, (float("-inf"), float("inf")))
        notes = ("the geometry in the header of this format is not read",)
        missing = ("pixel size", "distance", "wavelength")
        experiment = Experiment(Beam(0.0), detector)
        return Header(f"{self.kind} (read by fabio)", experiment, "no bad pixels are marked", notes, missing)

    def read_pixels(self, index: int) -> NDArray[Any]:
        """Return the pixels (slow, fast) of frame ``index``."""
        image = _open(Path(self.path))
        if self.kind == "mar345":
            check_mar345(read_all(Path(self.path)), self.shape[0] * self.shape[1], self.path)
        try:
            data = np.asarray(image.data if index == 0 else image.get_frame(index).data)
        except _ERRORS as error:
            raise DataError(f"frame cannot be read ({error}): see that the file is complete", self.path, index) from error
        if data.shape != self.shape:
            raise DataError(f"frame has shape {data.shape}, the first one {self.shape}: split the file", self.path, index)
        return data


def _native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type that frames of this stored type are given: native, at most 32 bits."""
    small = {"u1": "u2", "i1": "i2", "i8": "i4", "u8": "u4", "f8": "f4"}
    return np.dtype(small.get(f"{dtype.kind}{dtype.itemsize}", f"{dtype.kind}{dtype.itemsize}"))


def _number(fields: Mapping[str, Any], name: str) -> float:
    try:
        return float(fields[name])
    except (KeyError, TypeError, ValueError):
        return 0.0


def check_mar345(content: bytes, n_pixels: int, path: object) -> None:
    """Refuse a mar345 file whose packed pixels are cut short: fabio fills them up with anything.

    Raises
    ------
    DataError
        If they are.
    """
    found = re.search(rb"CCP4 packed image(?: V(\d))?, X: \d+, Y: \d+\n", content)
    if found is None:
        raise DataError("the packed pixels of this mar345 file are missing: copy it again from its origin, or leave it out", path)
    data = np.frombuffer(content, dtype=np.uint8, offset=found.end())
    if found[1] is None and packed_length(data, n_pixels, _CCP4_WIDTHS) < 0:
        raise DataError(
            f"its {data.size} bytes hold fewer than {n_pixels} pixels: copy it again from its origin, or leave it out", path
        )


def read_mar345(fields: Mapping[str, Any], size: tuple[int, int], number: int) -> Header:
    """Return the models of a mar345 header (mm, Å, degrees; the centre in pixels, CENTER_X along fast)."""
    pixel = (_number(fields, "PixelLength"), _number(fields, "PixelHeight"))
    pixel = (pixel[0], pixel[1] or pixel[0])
    distance, wavelength = _number(fields, "Distance"), _number(fields, "Wavelength")
    missing = [n for n, v in (("pixel size", min(pixel)), ("distance", distance), ("wavelength", wavelength)) if v <= 0]
    pixel = pixel if min(pixel) > 0 else (1.0, 1.0)
    center = (_number(fields, "CENTER_X"), _number(fields, "CENTER_Y"))
    notes = ["sensor not stated: no parallax (set sensor_material and sensor_thickness)"]
    if min(center) <= 0:
        center = (size[0] / 2, size[1] / 2)
        notes.append("beam centre not stated: the middle of the plate assumed")
    axis = "Omega" if _number(fields, "StartOmega") != _number(fields, "EndOmega") else "Phi"
    start = _number(fields, f"Start{axis}")
    width = round(_number(fields, f"End{axis}") - start, 6)
    tilt = _number(fields, "TwoTheta")
    if abs(tilt) > 0.05:
        notes.append(f"TWOTHETA {tilt:g} degrees is not used, its axis is not stated: give a geometry file")
    notes.append("polarisation and spindle not stated: fraction 0.999 in the horizontal plane and +x assumed")
    if width == 0:
        notes.append("no oscillation: a still")
    goniometer = Goniometer(((1.0, 0.0, 0.0),), (start,), (axis.lower(),), 0)
    scan = Scan((start, width), (number, number), _number(fields, "TIME")) if width else None
    detector = facing_detector(size, pixel, center, distance, (1.0, 250000.0))
    experiment = Experiment(Beam(wavelength), detector, goniometer, scan)
    return Header("mar345", experiment, "pixels of value 0 are not measured; no mask is stored", tuple(notes), tuple(missing))
