"""From strong pixels to measured spots, the same for every method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.spotfinding.workspace import Workspace
from xfelproc.kernels.components import label_components, sort_by_component
from xfelproc.kernels.pixels import pixel_limits
from xfelproc.kernels.splitting import split_components
from xfelproc.kernels.spots import COLUMNS, clear_state, grow_components, measure_components
from xfelproc.models.frames import Frame

Floats = NDArray[np.float64]

SPLIT_SIGMA, SPLIT_DEPTH = 4.0, 0.3
"""Two maxima are two spots if the valley between them is significant, and takes away this part of the lower."""


@dataclass(frozen=True)
class Measuring:
    """How components are formed: of ``eight`` neighbours or four; with the pixels that touch them if they have fewer than
    ``grow_below``; ``split`` at valleys up to ``max_pixels``; background from a ``ring`` so wide (px).
    """

    grow_below: int
    eight: bool
    ring: int
    split: bool
    max_pixels: int


def measure_spots(
    frame: Frame, strong: NDArray[np.int32], workspace: Workspace, options: Measuring
) -> tuple[Floats, NDArray[np.int64], NDArray[np.uint8]]:
    """Unite strong pixels to components, part those of several maxima, and measure each.

    Returns
    -------
    rows
        (n, len(COLUMNS)) measurements, in raster order of the first pixels; parts that were split off come last.
    sizes
        (n,) strong pixels of each component.
    split
        (n,) 1 at components that are parts of one.
    """
    limits = pixel_limits(frame.pixels.dtype, frame.trusted)
    order, start, split = _components(frame, strong, limits, workspace, options)
    n = len(start) - 1
    if n == 0:
        return np.zeros((0, len(COLUMNS))), np.zeros(0, dtype=np.int64), split
    rows = np.zeros((n, len(COLUMNS)))
    region_start = np.empty(n + 1, dtype=np.int32)
    near_mask = np.empty(n, dtype=np.uint8)
    detector, beam = frame.detector, frame.beam
    workspace.clean = False
    grow_components(
        frame.pixels,
        frame.mask,
        limits,
        strong,
        order,
        start,
        options.grow_below,
        workspace.state,
        workspace.region,
        region_start,
        near_mask,
    )
    region = workspace.region[: region_start[n]]
    measure_components(
        frame.pixels,
        frame.mask,
        limits,
        workspace.state,
        region,
        region_start,
        near_mask,
        options.ring,
        detector.d_matrices,
        detector.pixel_sizes,
        -np.asarray(beam.direction),
        beam.wavelength,
        rows,
    )
    clear_state(workspace.state, strong, region)
    workspace.clean = True
    return rows, np.diff(start).astype(np.int64), split


def _components(
    frame: Frame, strong: NDArray[np.int32], limits: NDArray[Any], workspace: Workspace, options: Measuring
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.uint8]]:
    """Return strong pixels sorted by component, where each of the n components starts (n + 1), and which are parts of one (n)."""
    _, height, width = frame.pixels.shape
    label, order = workspace.label[: len(strong)], workspace.order[: len(strong)]
    n = label_components(strong, width, height, options.eight, label)
    start = np.zeros(n + 1, dtype=np.int32)
    split = np.zeros(len(strong), dtype=np.uint8)
    if n == 0:
        return order, start, split
    sort_by_component(label, n, order, start)
    if options.split:
        total = split_components(
            frame.pixels, frame.mask, limits, strong, order, start, options.max_pixels, SPLIT_SIGMA, SPLIT_DEPTH, label, split
        )
        if total > n:
            n = total
            start = np.empty(n + 1, dtype=np.int32)
            sort_by_component(label, n, order, start)
    return order, start, split[:n]
