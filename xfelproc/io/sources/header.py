"""What a reader finds in a header: the experiment, and in words what is missing or odd."""

from __future__ import annotations

from dataclasses import dataclass, replace

from xfelproc.io.sources.attenuation import attenuation
from xfelproc.models.experiment import Detector, Experiment, Panel


@dataclass(frozen=True)
class Header:
    """Models of one frame as its header states them.

    ``missing`` names what a frame cannot be processed without ("wavelength", "distance", "pixel size"); its place in the
    experiment holds 0 (the pixel size 1). ``mask`` says in words how bad pixels are marked.
    """

    format: str
    experiment: Experiment
    mask: str = ""
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def with_sensor(detector: Detector, wavelength: float, material: str, thickness: float) -> Detector:
    """Return the detector with a sensor of ``material`` and ``thickness`` (mm), and its μ at ``wavelength`` (Å)."""
    mu = attenuation(material, wavelength)
    panels = tuple(replace(p, material=material, thickness=thickness, mu=mu) for p in detector.panels)
    return Detector(panels, detector.hierarchy)


def facing_detector(
    size: tuple[int, int],
    pixel: tuple[float, float],
    center: tuple[float, float],
    distance: float,
    trusted_range: tuple[float, float],
    pedestal: float = 0.0,
) -> Detector:
    """Return a detector of one panel that faces the beam, fast along +x, slow along -y.

    Parameters
    ----------
    size
        Pixels (fast, slow).
    pixel
        Their size in mm.
    center
        Where the beam meets it, in pixels from the outer corner of the first one.
    distance
        From the sample, in mm.
    trusted_range
        Lowest and highest raw value that is a measurement.
    pedestal
        Raw value of no photon.
    """
    pixel = (round(pixel[0], 12), round(pixel[1], 12))
    origin = (-center[0] * pixel[0], center[1] * pixel[1], -distance)
    panel = Panel("Panel", (1.0, 0.0, 0.0), (0.0, -1.0, 0.0), origin, pixel, size, trusted_range=trusted_range, pedestal=pedestal)
    return Detector((panel,))
