"""From strong pixels to measured spots, the same for every method."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.spotfinding.workspace import Workspace
from xfelproc.kernels.components import label_components, sort_by_component
from xfelproc.kernels.pixels import pixel_limits
from xfelproc.kernels.spots import COLUMNS, clear_state, grow_components, measure_components
from xfelproc.models.frames import Frame

Floats = NDArray[np.float64]


def measure_spots(
    frame: Frame, strong: NDArray[np.int32], workspace: Workspace, grow: bool, eight: bool, ring: int
) -> tuple[Floats, NDArray[np.int64]]:
    """Unite strong pixels to components and measure each.

    Returns
    -------
    rows
        (n, len(COLUMNS)) measurements, in raster order of the first pixels.
    sizes
        (n,) strong pixels of each component.
    """
    _, height, width = frame.pixels.shape
    label, order = workspace.label[: len(strong)], workspace.order[: len(strong)]
    n = label_components(strong, width, height, eight, label)
    rows = np.zeros((n, len(COLUMNS)))
    if n == 0:
        return rows, np.zeros(0, dtype=np.int64)
    start = np.empty(n + 1, dtype=np.int32)
    sort_by_component(label, n, order, start)
    limits = pixel_limits(frame.pixels.dtype, frame.trusted)
    region_start = np.empty(n + 1, dtype=np.int32)
    near_mask = np.empty(n, dtype=np.uint8)
    detector, beam = frame.detector, frame.beam
    grow_components(
        frame.pixels, frame.mask, limits, strong, order, start, grow, workspace.state, workspace.region, region_start, near_mask
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
        ring,
        detector.d_matrices,
        detector.pixel_sizes,
        -np.asarray(beam.direction),
        beam.wavelength,
        rows,
    )
    clear_state(workspace.state, strong, region)
    return rows, np.diff(start).astype(np.int64)
