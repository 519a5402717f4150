"""marCCD and Rayonix images: a TIFF with a header of its own in front of plain pixels."""

from __future__ import annotations

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

HEADER = 4096

# byte offsets from 1024 on of the 32-bit integers of the marCCD header that are used, and the factor to mm, Å, degrees, px, s
_FIELDS = {
    "n_fast": (80, 1.0),
    "n_slow": (84, 1.0),
    "depth": (88, 1.0),
    "saturated_value": (104, 1.0),
    "xtal_to_detector": (640, 1e-3),
    "beam_x": (644, 1e-3),
    "beam_y": (648, 1e-3),
    "exposure_time": (656, 1e-3),
    "start_twotheta": (668, 1e-3),
    "start_omega": (672, 1e-3),
    "start_chi": (676, 1e-3),
    "start_kappa": (680, 1e-3),
    "start_phi": (684, 1e-3),
    "start_xtal_to_detector": (696, 1e-3),
    "end_omega": (704, 1e-3),
    "end_chi": (708, 1e-3),
    "end_kappa": (712, 1e-3),
    "end_phi": (716, 1e-3),
    "rotation_range": (736, 1e-3),
    "pixelsize_x": (772, 1e-6),
    "pixelsize_y": (776, 1e-6),
    "source_wavelength": (908, 1e-5),
}


class MarCcdSource(ImageSource):
    """A marCCD file."""

    def __init__(self, path: str | Path, settings: SourceSettings) -> None:
        super().__init__(path, settings)
        head = read_head(Path(path), HEADER)
        if len(head) < HEADER:
            raise DataError("the marCCD header is cut short: copy it again from its origin, or leave it out", path)
        order = "<" if head[1024 + 28] == 0xD2 else ">"
        words = np.frombuffer(head, dtype=f"{order}i4", offset=1024)
        self.fields = {name: round(float(words[offset // 4]) * unit, 9) for name, (offset, unit) in _FIELDS.items()}
        self.shape = (int(self.fields["n_slow"]), int(self.fields["n_fast"]))
        if min(self.shape) < 1 or self.fields["depth"] not in (2, 4):
            raise DataError(
                f"the marCCD header states {self.shape} pixels of {self.fields['depth']:g} bytes: it is damaged; "
                "copy it again from its origin, or leave it out",
                path,
            )
        self.stored = np.dtype(f"{order}u{int(self.fields['depth'])}")

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the pixels."""
        return self.stored.newbyteorder("=")

    def read_header(self) -> Header:
        """Return the models of the header."""
        return read_marccd(self.fields, (self.shape[1], self.shape[0]), frame_number(Path(self.path)))

    def read_pixels(self, index: int) -> NDArray[Any]:
        """Return the pixels (slow, fast)."""
        content = read_all(Path(self.path))
        count = self.shape[0] * self.shape[1]
        if len(content) < HEADER + count * self.stored.itemsize:
            raise DataError(
                f"the pixels are cut short: {len(content) - HEADER} of {count * self.stored.itemsize} bytes are there; "
                "copy it again from its origin, or leave it out",
                self.path,
            )
        stored = np.frombuffer(content, dtype=self.stored, count=count, offset=HEADER)
        return stored.reshape(self.shape)


def read_marccd(fields: dict[str, float], size: tuple[int, int], number: int) -> Header:
    """Return the models of a marCCD header: the detector faces the beam, fast along +x, slow along -y.

    The distance is that at the start of the exposure where it is stated; the beam centre is in pixels.
    """
    pixel = (fields["pixelsize_x"], fields["pixelsize_y"])
    distance = fields["start_xtal_to_detector"] or fields["xtal_to_detector"]
    wavelength = max(0.0, fields["source_wavelength"])
    missing = [n for n, v in (("pixel size", min(pixel)), ("distance", distance), ("wavelength", wavelength)) if v <= 0]
    pixel = pixel if min(pixel) > 0 else (1.0, 1.0)
    center = (fields["beam_x"], fields["beam_y"])
    notes = ["sensor not stated: no parallax (set sensor_material and sensor_thickness)"]
    if min(center) <= 0:
        center = (size[0] / 2, size[1] / 2)
        notes.append("beam centre not stated: the middle of the detector assumed")
    tilt = fields["start_twotheta"]
    if abs(tilt) > 0.05:
        notes.append(f"2θ of {tilt:g} degrees is not used, its axis is not stated: give a geometry file")
    turned = [n for n in ("phi", "omega", "kappa", "chi") if fields[f"start_{n}"] != fields[f"end_{n}"]]
    axis = turned[0] if turned else "phi"
    start = fields[f"start_{axis}"]
    width = round(fields[f"end_{axis}"] - start, 9) if turned else fields["rotation_range"]
    notes.append("polarisation and spindle not stated: fraction 0.999 in the horizontal plane and +x assumed")
    if width == 0:
        notes.append("no oscillation: a still")
    high = fields["saturated_value"] if fields["saturated_value"] > 0 else 65535.0
    detector = facing_detector(size, pixel, center, max(0.0, distance), (1.0, high))
    goniometer = Goniometer(((1.0, 0.0, 0.0),), (start,), (axis,), 0)
    scan = Scan((start, width), (number, number), fields["exposure_time"]) if width else None
    experiment = Experiment(Beam(wavelength), detector, goniometer, scan)
    return Header("marCCD", experiment, "pixels of value 0 are not measured; no mask is stored", tuple(notes), tuple(missing))
