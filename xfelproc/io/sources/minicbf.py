"""Headers of miniCBF files: the comment lines that Pilatus and Eiger detectors and their converters write."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from xfelproc.geometry.cells import rotation_matrix
from xfelproc.io.sources.attenuation import material_of
from xfelproc.io.sources.header import Header, facing_detector, with_sensor
from xfelproc.models.experiment import Beam, Detector, Experiment, Goniometer, Scan, Vector3, as_vector

_NUMBER = r"([-+]?\d+\.?\d*(?:[eE][-+]?\d+)?)"


@dataclass(frozen=True)
class Comments:
    """The comment lines by their first word, values as text."""

    values: dict[str, str]
    detector: str = ""
    material: str = ""
    thickness: float = 0.0

    def numbers(self, name: str) -> tuple[float, ...]:
        """Return all numbers of a line; none if there is no such line."""
        return tuple(float(v) for v in re.findall(_NUMBER, self.values.get(name, "")))

    def number(self, name: str) -> float | None:
        """Return the first number of a line."""
        return next(iter(self.numbers(name)), None)


def parse_comments(text: str) -> Comments:
    """Return the lines ``# Name value`` of a header's text; the first of each name counts."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        found = re.match(r"#\s*([A-Za-z]\w*)\s*[:=]?\s*(.*\S)", line)
        if found:
            values.setdefault(found[1], found[2])
    sensor = re.search(r"#\s*([A-Za-z ]+?)\s+sensor,?\s*thickness\s*" + _NUMBER + r"\s*m\b", text, re.IGNORECASE)
    return Comments(
        values,
        values.get("Detector", ""),
        material_of(sensor[1]) if sensor else "",
        float(sensor[2]) * 1000 if sensor else 0.0,
    )


def trusted_range(comments: Comments) -> tuple[float, float]:
    """Return (0, count cutoff): negative values mark gaps and bad pixels."""
    cutoff = comments.number("Count_cutoff")
    return (0.0, cutoff if cutoff is not None and cutoff > 0 else float("inf"))


def read_comments(text: str, size: tuple[int, int], frame_number: int) -> Header:
    """Return the models that the comment lines state.

    The detector faces the beam, fast along +x and slow along -y; ``Beam_xy`` counts pixels from the outer edge of the first one.

    Parameters
    ----------
    text
        Header of the file.
    size
        Pixels (fast, slow).
    frame_number
        Number of the frame in its sweep.
    """
    comments = parse_comments(text)
    missing, notes = [], []
    pixel = tuple(v * 1000 for v in comments.numbers("Pixel_size")[:2])
    if len(pixel) < 2 or min(pixel) <= 0:
        missing.append("pixel size")
        pixel = (1.0, 1.0)
    distance = (comments.number("Detector_distance") or 0.0) * 1000
    if distance <= 0:
        missing.append("distance")
    center = comments.numbers("Beam_xy")[:2]
    if len(center) < 2:
        center = (size[0] / 2, size[1] / 2)
        notes.append("beam centre not stated: the middle of the detector assumed")
    wavelength = comments.number("Wavelength") or 0.0
    if wavelength <= 0:
        missing.append("wavelength")
    if comments.thickness == 0 or not comments.material:
        notes.append("sensor not stated: no parallax (set sensor_material and sensor_thickness)")
    detector = facing_detector(size, (pixel[0], pixel[1]), (center[0], center[1]), distance, trusted_range(comments))
    detector = with_sensor(detector, wavelength, comments.material, comments.thickness)
    goniometer, scan, more = _rotation(comments, frame_number)
    detector, turned = _two_theta(detector, comments)
    beam, polarised = _beam(comments, wavelength)
    return Header(
        f"miniCBF ({comments.detector})" if comments.detector else "miniCBF",
        Experiment(beam, detector, goniometer, scan),
        "negative pixel values are gaps and bad pixels; no mask is stored",
        tuple(notes + more + turned + polarised),
        tuple(missing),
    )


def _beam(comments: Comments, wavelength: float) -> tuple[Beam, list[str]]:
    fraction = comments.number("Polarization")
    if fraction is None or not 0 <= fraction <= 1:
        return Beam(wavelength), ["polarisation not stated: fraction 0.999 in the horizontal plane assumed"]
    return Beam(wavelength, polarization_fraction=fraction), ["plane of polarisation not stated: horizontal assumed"]


def _two_theta(detector: Detector, comments: Comments) -> tuple[Detector, list[str]]:
    angle = comments.number("Detector_2theta") or 0.0
    if angle == 0:
        return detector, []
    turn = rotation_matrix(np.array([np.radians(angle), 0.0, 0.0]))
    panel = detector.panels[0]
    moved = replace(
        panel,
        fast_axis=as_vector(turn @ panel.fast_axis),
        slow_axis=as_vector(turn @ panel.slow_axis),
        origin=as_vector(turn @ panel.origin),
    )
    return Detector((moved,)), [f"Detector_2theta {angle:g} degrees: taken as a rotation about +x, which the header does not state"]


# spindles that the headers of these detectors (serial number) do not state rightly: Diamond I24, vertical, up
_SPINDLES: dict[str, Vector3] = {"60-0119": (0.0, 1.0, 0.0)}


def _axis(text: str, detector: str) -> tuple[Vector3, str]:
    """Return the spindle in the laboratory frame, from the serial number or ``Oscillation_axis``, and a note."""
    for serial, known in _SPINDLES.items():
        if serial in detector and "FAST" not in text.upper():
            return known, f"spindle of the beamline of detector {serial}"
    name = text.upper().replace(" ", "")
    sign = -1.0 if "CCW" in name else 1.0
    for word, vector in (
        ("+SLOW", (0.0, -1.0, 0.0)),
        ("-SLOW", (0.0, 1.0, 0.0)),
        ("+FAST", (1.0, 0.0, 0.0)),
        ("-FAST", (-1.0, 0.0, 0.0)),
    ):
        if word in name:
            return vector, f"spindle from Oscillation_axis {text!r}"
    if name.startswith("X"):
        return (sign, 0.0, 0.0), f"spindle from Oscillation_axis {text!r}"
    return (1.0, 0.0, 0.0), f"spindle along +x assumed (Oscillation_axis {text or 'not stated'!r})"


def _rotation(comments: Comments, frame_number: int) -> tuple[Goniometer | None, Scan | None, list[str]]:
    """Return goniometer and scan of the comment lines; a still where the increment is 0."""
    start = comments.number("Start_angle")
    width = comments.number("Angle_increment") or 0.0
    if start is None:
        return None, None, []
    vector, note = _axis(comments.values.get("Oscillation_axis", ""), comments.detector)
    goniometer = Goniometer((vector,), (start,), ("omega",), 0)
    notes = [note]
    fixed = [f"{name} {value:g}" for name in ("Kappa", "Chi", "Phi") if (value := comments.number(name) or 0.0) != 0]
    if fixed:
        notes.append(f"goniometer angles without axes are not used: {', '.join(fixed)} degrees")
    if width == 0:
        return goniometer, None, [f"no oscillation: a still at {start:g} degrees", *notes]
    return goniometer, Scan((start, width), (frame_number, frame_number), comments.number("Exposure_time") or 0.0), notes
