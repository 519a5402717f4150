"""How broad the spots of a lattice are, and the peak regions that follow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xfelproc.geometry.prediction import mosaic_model, pack_detector
from xfelproc.kernels import footprint as kernel
from xfelproc.models.experiment import Beam, Crystal
from xfelproc.models.frames import Frame, RefinedLattice
from xfelproc.models.tables import ReflectionTable, SpotTable

Floats = NDArray[np.float64]

_SPOTS = 64
_MIN_SNR = 5.0
_LARGEST = 4.0  # semi-axes are at most this many times the least radius
_GAUSSIAN_FWHM = 2.0 * np.sqrt(2.0 * np.log(2.0))


def expected_variances(crystal: Crystal, beam: Beam) -> tuple[Floats, Floats]:
    """Return the variances θ (4) of `xfelproc.kernels.footprint` that the crystal's model says, and how far they may be off.

    An envelope of half-width w, of flat density, has the variance w²/3. The first, in px², is that of a point spread of half a
    pixel on pixels, and a prediction that misses by a quarter.
    """
    shape, mosaic = mosaic_model(crystal)
    band = max((beam.bandwidth / _GAUSSIAN_FWHM) ** 2, crystal.dilation_variance)
    expected = np.array([0.4, (beam.wavelength * shape) ** 2 / 3.0, mosaic**2 / 3.0, band])
    least = np.array([0.4, (beam.wavelength / 3000.0) ** 2, np.radians(0.02) ** 2, 0.0005**2])
    return expected, np.maximum(expected, least)


def fit_variances(frame: Frame, lattice: RefinedLattice, spots: SpotTable) -> Floats:
    """Return the variances θ (4) of the spots of a lattice: those expected, corrected by its indexed spots."""
    expected, deviation = expected_variances(lattice.crystal, frame.beam)
    indexed = lattice.indexed
    rows = np.flatnonzero(indexed["used"]) if len(spots) else np.zeros(0, dtype=np.intp)
    spot = indexed["spot"][rows]
    strong = spots["snr"][spot] >= _MIN_SNR
    rows, spot = rows[strong], spot[strong]
    if len(rows) > _SPOTS:
        pick = np.arange(_SPOTS) * len(rows) // _SPOTS
        rows, spot = rows[pick], spot[pick]
    if not len(rows):
        return expected
    theta, _ = kernel.fit_footprint(
        frame.pixels,
        frame.mask,
        frame.trusted,
        frame.detector.image_sizes,
        pack_detector(lattice.detector),
        frame.beam.s0 * frame.beam.wavelength,
        spots["panel"][spot],
        np.column_stack([indexed["fast_calc"][rows], indexed["slow_calc"][rows]]),
        spots["snr"][spot].astype(np.float64),
        expected,
        deviation,
    )
    return np.asarray(theta, dtype=np.float64)


def peak_regions(
    frame: Frame,
    lattice: RefinedLattice,
    spots: SpotTable,
    table: ReflectionTable,
    widths: float,
    radii: tuple[float, float, float],
) -> Floats:
    """Return the peak regions (n, 7) of `xfelproc.kernels.footprint.peak_regions` for the predictions of a lattice.

    Parameters
    ----------
    widths
        Semi-axes of a region in standard deviations of the spot.
    radii
        Least radius of a region, and radii of the ring about such a one, px.
    """
    regions = np.empty((len(table), 7))
    kernel.peak_regions(
        pack_detector(lattice.detector),
        frame.beam.s0 * frame.beam.wavelength,
        table["panel"],
        table["fast"],
        table["slow"],
        fit_variances(frame, lattice, spots),
        widths,
        np.array([*radii, _LARGEST * radii[0]]),
        regions,
    )
    return regions
