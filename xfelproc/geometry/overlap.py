"""Panels of a detector that hide one another: an error of its geometry, unless they stand in two layers on purpose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xfelproc.models.experiment import Detector

Floats = NDArray[np.float64]

DEEPEST = 2.0
"""Pixels by which neighbours may overlap without being told of: drawings are not better."""


@dataclass(frozen=True)
class Overlap:
    """Two panels, by number, and how far (px of the first) they reach into one another."""

    first: int
    second: int
    depth: float


def overlapping_panels(detector: Detector, deepest: float = DEEPEST) -> tuple[Overlap, ...]:
    """Return the pairs of panels that, seen from the sample, overlap by more than ``deepest`` pixels; the deepest first.

    The panels' outlines are projected on the plane across the detector's mean direction; two convex outlines overlap unless an
    edge of one of them parts them (separating axes).
    """
    outlines, pixel = _outlines(detector)
    low, high = outlines.min(axis=1), outlines.max(axis=1)
    found = []
    for first in range(len(detector)):
        near = np.all((low[first + 1 :] < high[first]) & (high[first + 1 :] > low[first]), axis=1)
        for second in first + 1 + np.flatnonzero(near):
            depth = _depth(outlines[first], outlines[second]) / pixel[first]
            if depth > deepest:
                found.append(Overlap(first, int(second), float(depth)))
    return tuple(sorted(found, key=lambda pair: (-pair.depth, pair.first, pair.second)))


def _outlines(detector: Detector) -> tuple[Floats, Floats]:
    """Return corners (panel, 4, 2) of the panels in a plane at their mean distance, and the size (panel,) of a pixel there."""
    d, size = detector.d_matrices, detector.image_sizes * detector.pixel_sizes
    corners = np.stack(
        [d[:, :, 2] + x * size[:, :1] * d[:, :, 0] + y * size[:, 1:] * d[:, :, 1] for x, y in ((0, 0), (1, 0), (1, 1), (0, 1))],
        axis=1,
    )
    middles = corners.mean(axis=1)
    forward = middles.mean(axis=0)
    normal = np.cross(d[0, :, 0], d[0, :, 1])
    distance = float(np.linalg.norm(forward))
    axis = forward / distance if distance > 0 else normal
    across = np.cross(axis, np.eye(3)[int(np.argmin(np.abs(axis)))])
    across /= np.linalg.norm(across)
    plane = np.stack([across, np.cross(axis, across)])
    depth = np.maximum(corners @ axis, 1e-9)
    flat: Floats = (corners @ plane.T) / depth[:, :, None] * distance
    pixel: Floats = detector.pixel_sizes.min(axis=1) * distance / np.maximum(middles @ axis, 1e-9)
    return flat, pixel


def _depth(first: Floats, second: Floats) -> float:
    """Return by how far two convex outlines (4, 2) overlap along the axis along which it is least; 0 or less: they do not."""
    best = np.inf
    for outline in (first, second):
        edges = np.roll(outline, -1, axis=0) - outline
        for x, y in edges:
            normal = np.array([-y, x]) / np.hypot(x, y)
            a, b = first @ normal, second @ normal
            best = min(best, float(min(a.max(), b.max()) - max(a.min(), b.min())))
    return best


def overlap_warning(detector: Detector) -> str | None:
    """Return what to say of overlapping panels; None if there are none."""
    pairs = overlapping_panels(detector)
    if not pairs:
        return None
    names = [panel.name or f"panel {number}" for number, panel in enumerate(detector.panels)]
    shown = ", ".join(f"{names[p.first]} and {names[p.second]} by {p.depth:.1f} px" for p in pairs[:4])
    more = f" and {len(pairs) - 4} more pairs" if len(pairs) > 4 else ""
    return (
        f"panels of the detector overlap, seen from the sample: {shown}{more}. Rays there are taken for the first panel's; unless "
        "the panels stand in two layers, correct the geometry"
    )
