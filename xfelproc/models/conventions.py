"""Conventions, stated once.

* Laboratory frame as imgCIF and DIALS: the beam travels towards -z, y points up, x = y × z. CrystFEL's and
  McStas/NeXus's frames are reached by ``diag(-1, 1, -1)`` each.
* Lengths in mm; wavelength, cell and resolution in Å; reciprocal space in 1/Å without 2π. Angles are in degrees in
  files, parameters and tables and in radians inside kernels.
* ``Beam.direction`` points from the sample to the source (as in a DIALS ``.expt``): ``s0 = -direction / wavelength``.
* The scattering vector of reflection h is ``q = A h``; it diffracts where ``|s0 + q| = 1 / wavelength``. ``A = U B`` has the
  columns a*, b*, c*.
* Pixel coordinates are (fast, slow); the first pixel's centre is at (0.5, 0.5).
* Pixels of a frame are stacked as (panel, slow, fast). Intensities are photons.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

import numpy as np
from numpy.typing import NDArray

HC = 12398.419843320026
"""Planck constant times speed of light, eV Å (CODATA 2018, exact)."""

FLIP_XZ: NDArray[np.float64] = np.diag([-1.0, 1.0, -1.0])
"""Takes CrystFEL's or McStas/NeXus's laboratory frame to ours, and back."""


def wavelength_of(energy_ev: float) -> float:
    """Return the wavelength in Å of a photon of the given energy in eV."""
    return HC / energy_ev


def energy_of(wavelength: float) -> float:
    """Return the energy in eV of a photon of the given wavelength in Å."""
    return HC / wavelength


class MaskBit(IntFlag):
    """Why a pixel is not used; 0 is a good pixel."""

    BAD = 1  # the detector's or the user's mask file
    REGION = 2  # bad region of a geometry, or untrusted rectangle
    RANGE = 4  # below the trusted range, NaN, or a marked pixel value
    SATURATED = 8  # above the trusted range
    EDGE = 16  # panel edge
    RESOLUTION = 32  # outside the resolution limits, ice ring, shadow
    CALIBRATION = 64  # dark or gain unusable
    PADDING = 128  # not a pixel: fills a panel smaller than the stack


class PixelMask(IntFlag):
    """Why a pixel is not used, in files (uint32); 0 is a good pixel.

    Bits 0 to 8 and 31 mean what they mean in NXmx's ``pixel_mask``, which leaves the others undefined; those from 16 are ours.
    """

    GAP = 1 << 0  # no sensor there
    DEAD = 1 << 1  # does not respond
    COLD = 1 << 2  # responds less than others, or its dark level is far below theirs
    HOT = 1 << 3  # responds more than others, or its dark level is far above theirs
    NOISY = 1 << 4  # scatters more than others
    CLUSTER = 1 << 6  # among many bad pixels
    USER = 1 << 8  # the user's or the facility's mask
    STUCK = 1 << 16  # always reads the same value, or the same gain stage
    NO_GAIN = 1 << 17  # no usable pedestal or gain (in the stage it is in)
    SHADOW = 1 << 18  # behind the beam stop, or shadowed
    EDGE = 1 << 19  # panel edge
    RESOLUTION = 1 << 20  # outside the resolution limits
    ICE = 1 << 21  # ice ring
    DEVIANT = 1 << 22  # standard deviation or maximum of a run is unlike those of others
    SATURATED = 1 << 23  # of one frame: above what can be measured
    NO_VALUE = 1 << 24  # of one frame: no measurement (NaN, marked value, impossible stage, below the trusted range)
    VIRTUAL = 1 << 31  # interpolated, not read out


UNCALIBRATED = PixelMask.DEAD | PixelMask.COLD | PixelMask.HOT | PixelMask.NOISY | PixelMask.STUCK | PixelMask.NO_GAIN
"""Reasons of `PixelMask` that become MaskBit.CALIBRATION; the others become MaskBit.BAD."""


def mask_bits(reasons: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Return MaskBit of an array of PixelMask."""
    uncalibrated = np.uint32(UNCALIBRATED)
    bits = np.where(reasons & uncalibrated, np.uint8(MaskBit.CALIBRATION), np.uint8(0))
    bits |= np.where(reasons & ~uncalibrated, np.uint8(MaskBit.BAD), np.uint8(0))
    return bits


class SpotFlag(IntFlag):
    """What is remarkable about a spot."""

    SATURATED = 1
    ICE = 2
    NEAR_MASK = 4
    SPLIT = 8  # two maxima, or merged from several components


class ReflectionFlag(IntFlag):
    """What is remarkable about an integrated reflection."""

    INTEGRATED = 1  # intensity and sigma are usable
    OVERLOADED = 2
    BAD_PIXEL = 4  # a masked pixel inside the peak region
    OVERLAP = 8  # the peak region is shared with another lattice or reflection
    BACKGROUND = 16  # too few background pixels
    EDGE = 32  # the shoebox leaves the panel
    OBSERVED = 64  # a strong spot was indexed at it
    OUTLIER = 128  # rejected in merging


class FrameStatus(IntEnum):
    """How far a frame came. An expected non-result is a status, never an exception."""

    FAILED = 0
    BLANK = 1
    HIT = 2
    INDEXED = 3
    INTEGRATED = 4
