"""Spots above block means: the fast default."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from xfelproc.algorithms.spotfinding.workspace import Workspace
from xfelproc.kernels.block_background import strong_by_blocks
from xfelproc.kernels.pixels import LARGEST_COUNT, pixel_limits
from xfelproc.models.frames import Frame
from xfelproc.models.parameters import Algorithm


class BlockBackground(Algorithm):
    """Pixels whose 3 x 3 sum stands out from the clipped mean and variance of their block.

    One pass over the pixels; the variance is measured, so that the noise need not be that of counting. What it lets through
    is judged by its signal to noise over a local ring (``spots.min_snr``).
    """

    GROW_BELOW: ClassVar[int] = 5
    """Strong pixels are centres of 3 x 3 sums: all but weak spots reach no further than they do."""
    method: Literal["block_background"] = "block_background"
    block_size: Annotated[
        int, Field(ge=10, le=500, description="edge of the blocks in which the background is taken as flat, px")
    ] = 40
    n_sigma: Annotated[float, Field(gt=0, le=100, description="significance of the 3 x 3 sum above the background, σ")] = 4.5
    row_step: Annotated[
        int,
        Field(ge=1, le=10, description="every how many rows are sampled for the means (all, where too few pixels are usable)"),
    ] = 4

    def strong_pixels(self, frame: Frame, workspace: Workspace) -> NDArray[np.int32]:
        """Return the flat indices of strong pixels, ascending (a view of the workspace)."""
        limits = pixel_limits(frame.pixels.dtype, frame.trusted)
        ceilings = np.minimum(limits[:, 1], min(LARGEST_COUNT, limits[:, 1].max()))
        n = strong_by_blocks(
            frame.pixels,
            frame.mask,
            limits,
            ceilings.astype(limits.dtype),
            self.block_size,
            self.row_step,
            self.n_sigma,
            workspace.rows,
            workspace.high,
            workspace.index,
        )
        return workspace.index[:n]
