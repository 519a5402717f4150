"""Beam stop and shadows from the mean image: regions far darker than the rest of their ring."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from xfelproc.geometry.detector import polarization_factor, resolution_map
from xfelproc.models.experiment import Beam, Detector

Floats = NDArray[np.float64]

SMOOTH = 5
"""Edge of the window over which the mean image is smoothed, px."""
QUANTILE = 0.7
"""A ring is judged by this quantile of it, so that shadows may cover more than half of it."""
ABRUPT = 0.5
"""The profile falling by this factor within a few rings is an edge: beyond it the last good value is kept."""
RISE = 8
"""Rings of an edge."""
NARROW = 31
"""Peaks of the profile narrower than this many rings are powder rings, which the background does not have."""
SMALLEST = 40
"""Pixels of a region's core; smaller ones are dead pixels, not shadows."""
CORE = 0.5
"""A region has a core below this share of the level: sensors of a lower gain or offset do not, shadows do."""
MIN_LEVEL = 5.0
"""Nothing is told of rings fainter than this, in σ of the smoothed image."""


def find_shadows(
    mean: NDArray[np.float32],
    sd: NDArray[np.float32],
    count: NDArray[np.uint32],
    good: NDArray[np.bool_],
    detector: Detector,
    beam: Beam,
    level: float,
    grow: int,
) -> NDArray[np.bool_]:
    """Return the pixels (panel, slow, fast) behind the beam stop or in shadow.

    Parameters
    ----------
    mean, sd, count
        Mean and standard deviation over the frames, and number of measurements.
    good
        Pixels that can be judged.
    detector, beam
        Geometry: a ring is all pixels at an angle to the beam.
    level
        What is below this share of its ring is in shadow.
    grow
        By how many pixels regions are enlarged, for their blurred edge.
    """
    ring, n_rings = _rings(detector, beam)
    smooth, noise = np.empty(mean.shape), np.empty(mean.shape)
    factor = _polarization(detector, beam)
    for number in range(len(mean)):
        smooth[number], noise[number] = _smooth(
            mean[number] / factor[number], sd[number] / factor[number], count[number], good[number]
        )
    known = np.isfinite(smooth)
    profile = _profile(smooth, ring, known, n_rings)
    # of windows without a photon the scatter is not known: that of the ring counts
    uncertainty = np.sqrt(_means(noise**2, ring, known, n_rings))
    expected = reference_profile(profile, np.nan_to_num(profile) <= MIN_LEVEL * uncertainty)[ring]
    dark = known & (smooth < level * expected) & (expected > MIN_LEVEL * uncertainty[ring])
    found = np.zeros(mean.shape, dtype=np.bool_)
    for number, panel in enumerate(detector.panels):
        n_fast, n_slow = panel.image_size
        # bad pixels within a shadow belong to it; they do not make one
        closed = dark[number, :n_slow, :n_fast] | ~known[number, :n_slow, :n_fast]
        near_beam = ring[number, :n_slow, :n_fast] < 2 * RISE
        core = dark[number] & (smooth[number] < CORE * level * expected[number])
        found[number, :n_slow, :n_fast] = _regions(closed, dark[number, :n_slow, :n_fast], core[:n_slow, :n_fast], near_beam, grow)
    return found & (factor > 0)


def _rings(detector: Detector, beam: Beam) -> tuple[NDArray[np.int64], int]:
    """Return the ring of each pixel: its distance from the beam (tan 2θ) in pixels of a detector across the beam."""
    d = resolution_map(detector, beam).astype(np.float64)
    angle = 2.0 * np.arcsin(np.minimum(beam.wavelength / (2.0 * d), 1.0))
    distance = abs(float(detector.centre @ np.asarray(beam.direction)))
    radius = np.tan(np.minimum(angle, 1.5)) * distance / detector.panels[0].pixel_size[0]
    ring = np.minimum(radius, 20_000).astype(np.int64)
    return ring, int(ring.max()) + 1


def _polarization(detector: Detector, beam: Beam) -> Floats:
    """Return the polarisation factor at each pixel (parallax is left out)."""
    _, n_slow, n_fast = detector.stack_shape
    factor = np.empty(detector.stack_shape)
    for number, (d, size) in enumerate(zip(detector.d_matrices, detector.pixel_sizes, strict=True)):
        fast, slow = (np.arange(n_fast) + 0.5) * size[0], (np.arange(n_slow) + 0.5) * size[1]
        lab = d[:, 0] * fast[None, :, None] + d[:, 1] * slow[:, None, None] + d[:, 2]
        factor[number] = np.maximum(polarization_factor(beam, lab.reshape(-1, 3)).reshape(n_slow, n_fast), 0.05)
    return factor


def _smooth(
    mean: NDArray[np.floating], sd: NDArray[np.floating], count: NDArray[np.uint32], good: NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """Return the mean over windows of usable pixels, and its uncertainty; NaN where less than a quarter is usable."""
    usable = good & np.isfinite(mean) & np.isfinite(sd)
    weight = ndimage.uniform_filter(usable.astype(np.float64), SMOOTH, mode="constant")
    variance = np.where(usable, sd.astype(np.float64) ** 2 / np.maximum(count, 1), 0.0)
    values = np.where(usable, mean, 0.0).astype(np.float64)
    total = ndimage.uniform_filter(values, SMOOTH, mode="constant")
    squares = ndimage.uniform_filter(values * values, SMOOTH, mode="constant")
    # of few frames the scatter from pixel to pixel tells more than that of each over the frames
    between = squares - total * total / np.maximum(weight, 1e-9)
    scatter = np.maximum(ndimage.uniform_filter(variance, SMOOTH, mode="constant"), between)
    # windows at a panel's edge are cut: their weight is less, and a quarter is measured against what is on the panel
    whole = ndimage.uniform_filter(np.ones(mean.shape), SMOOTH, mode="constant")
    there = weight > 0.25 * whole
    with np.errstate(invalid="ignore", divide="ignore"):
        smooth = np.where(there, total / weight, np.nan)
        noise = np.sqrt(np.maximum(scatter, 0.0) / weight / (SMOOTH**2 * weight))
    return smooth, np.where(there, noise, np.nan)


def _profile(values: Floats, ring: NDArray[np.int64], known: NDArray[np.bool_], n_rings: int) -> Floats:
    """Return the quantile of each ring; NaN where there are too few pixels."""
    rings, value = ring[known], values[known]
    order = np.lexsort((value, rings))
    rings, value = rings[order], value[order]
    counts = np.bincount(rings, minlength=n_rings)
    starts = np.cumsum(counts) - counts
    enough = counts >= 5
    profile = np.full(n_rings, np.nan)
    profile[enough] = value[(starts + (QUANTILE * counts).astype(np.int64))[enough]]
    return profile


def _means(values: Floats, ring: NDArray[np.int64], known: NDArray[np.bool_], n_rings: int) -> Floats:
    """Return the mean of each ring; 0 where there is none."""
    count = np.bincount(ring[known], minlength=n_rings)
    return np.bincount(ring[known], values[known], n_rings) / np.maximum(count, 1)


def reference_profile(profile: Floats, faint: NDArray[np.bool_]) -> Floats:
    """Return what a ring would show without shadow, from its quantile.

    Where all of a ring lies in shadow (within the beam stop, beyond an aperture) the profile drops abruptly; there the value before
    the drop is kept, inwards and outwards, until the profile is up again. Slow changes (the ring of water, air scatter) are
    followed, and peaks that are narrow (powder rings) are cut off first. Rings that are ``faint`` by themselves say nothing.
    """
    known = np.flatnonzero(np.isfinite(profile))
    if len(known) == 0 or faint[known].all():
        return np.zeros(len(profile))
    filled = np.interp(np.arange(len(profile)), known, profile[known])
    reference: Floats = ndimage.grey_opening(filled, (NARROW,), mode="nearest")
    middle = int(np.argmax(np.where(faint, -np.inf, reference)))
    for order in (np.arange(middle, -1, -1), np.arange(middle, len(profile))):
        recent: list[float] = []
        for r in order:
            before = max(recent[-RISE:], default=0.0)
            if reference[r] < ABRUPT * before:
                reference[r] = before
                recent.append(before)
            else:
                recent.append(0.0 if faint[r] else float(reference[r]))
    return reference


def _regions(
    closed: NDArray[np.bool_], dark: NDArray[np.bool_], core: NDArray[np.bool_], near_beam: NDArray[np.bool_], grow: int
) -> NDArray[np.bool_]:
    """Return the regions of a panel that begin at the beam or at an edge and have a core, grown."""
    labels, n = ndimage.label(closed)
    if n == 0:
        return closed
    sizes = np.bincount(labels[core], minlength=n + 1)
    border = np.zeros(closed.shape, dtype=np.bool_)
    border[[0, -1]] = border[:, [0, -1]] = True
    touching = np.zeros(n + 1, dtype=np.bool_)
    touching[labels[border | near_beam]] = True
    touching[0] = False
    kept = (touching & (sizes >= SMALLEST))[labels] & dark
    if not kept.any():
        return kept
    grown: NDArray[np.bool_] = ndimage.binary_dilation(kept, iterations=grow) if grow else kept
    return grown
