"""Pixels above the background at their radius (the idea of peakfinder8: Barty et al. 2014, J. Appl. Cryst. 47, 1118)."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from xfelproc.algorithms.spotfinding.workspace import Workspace
from xfelproc.geometry.detector import resolution_map
from xfelproc.kernels.pixels import pixel_limits
from xfelproc.kernels.radial_profile import ring_statistics, strong_by_radius
from xfelproc.models.experiment import Beam, Detector, Vector3
from xfelproc.models.frames import Frame
from xfelproc.models.parameters import Algorithm

MIN_RING_PIXELS = 20
"""Rings of fewer usable pixels have no background to speak of: nothing is found on them."""


class RadialProfile(Algorithm):
    """Pixels above mean + n σ of the ring of pixels at the same angle from the beam, on whatever panel they are.

    The background must be round: strong polarisation, shadows and streaks raise σ and hide weak spots. What it lets through
    is judged by its signal to noise over a local ring (``spots.min_snr``).
    """

    GROW_BELOW: ClassVar[int] = 1_000_000
    """Strong pixels leave out the spot's foot: spots of all sizes are measured with the pixels that touch them."""
    method: Literal["radial_profile"] = "radial_profile"
    snr: Annotated[float, Field(gt=0, le=1000, description="height of a strong pixel above the ring's mean, σ")] = 5.0
    threshold: Annotated[float, Field(description="strong pixels are above this, photons")] = 0.0
    ring_bin: Annotated[float, Field(ge=0.5, le=100, description="width of a ring, px")] = 2.0
    cycles: Annotated[int, Field(ge=1, le=20, description="how often mean and σ are taken anew without what is above")] = 4
    clip: Annotated[float, Field(ge=1, le=100, description="what is so far above the mean is left out of mean and σ, σ")] = 4.0

    def strong_pixels(self, frame: Frame, workspace: Workspace) -> NDArray[np.int32]:
        """Return the flat indices of strong pixels, ascending (a view of the workspace)."""
        rings, n_rings = ring_map(frame.detector, frame.beam.direction, self.ring_bin)
        limits = pixel_limits(frame.pixels.dtype, frame.trusted)
        mean, sigma, count = np.empty(n_rings), np.empty(n_rings), np.empty(n_rings, dtype=np.int64)
        ring_statistics(frame.pixels, frame.mask, limits, rings, n_rings, self.cycles, self.clip, mean, sigma, count)
        level = np.maximum(self.threshold, mean + self.snr * np.sqrt(np.maximum(sigma**2, mean)))
        level[count < MIN_RING_PIXELS] = np.inf
        n = strong_by_radius(frame.pixels, frame.mask, limits, rings, level, workspace.index)
        return workspace.index[:n]


@lru_cache(maxsize=2)
def ring_map(detector: Detector, direction: Vector3, width: float) -> tuple[NDArray[np.uint16], int]:
    """Return the ring of each pixel (in the shape of the stack) and the number of rings.

    The radius is distance · tan 2θ over the pixel size of the first panel, the distance being that of the nearest panel's plane.
    """
    d = resolution_map(detector, Beam(1.0, direction)).astype(np.float64)
    tangent = np.tan(np.minimum(2.0 * np.arcsin(np.minimum(0.5 / d, 1.0)), 1.5))
    normals = np.cross(detector.d_matrices[:, :, 0], detector.d_matrices[:, :, 1])
    distance = float(np.abs(np.einsum("pi,pi->p", normals, detector.d_matrices[:, :, 2])).min())
    radius = tangent * distance / detector.panels[0].pixel_size[0] / width
    rings = np.minimum(radius, np.iinfo(np.uint16).max).astype(np.uint16)
    return rings, int(rings.max()) + 1
