"""Index of dispersion with the spot taken out of its own background."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from xfelproc.algorithms.spotfinding.workspace import Workspace
from xfelproc.kernels.dispersion import HALF, strong_by_dispersion
from xfelproc.kernels.dispersion_extended import brighter_than_clean_mean, clear, erode
from xfelproc.kernels.pixels import pixel_limits
from xfelproc.models.frames import Frame
from xfelproc.models.parameters import Algorithm


class DispersionExtended(Algorithm):
    """As ``dispersion``, but the mean is that of a window of 11 x 11 without its signal: more pixels of each spot are found.

    Windows of 7 x 7 that scatter more than counts do are eroded by half their width, which leaves the pixels of signal; the
    pixels of scattered windows are then held against the mean of those of 11 x 11 that are not signal.
    """

    GROW_BELOW: ClassVar[int] = 1_000_000
    """Strong pixels leave out the spot's foot: spots of all sizes are measured with the pixels that touch them."""
    method: Literal["dispersion_extended"] = "dispersion_extended"
    sigma_background: Annotated[
        float, Field(gt=0, le=1000, description="excess of the window's variance over its mean that means signal, σ")
    ] = 6.0
    sigma_strong: Annotated[float, Field(ge=0, le=1000, description="height of a strong pixel above the clean mean, σ")] = 3.0
    gain: Annotated[float, Field(gt=0, le=1e4, description="variance over mean of the background; 1 for photons")] = 1.0
    min_local: Annotated[int, Field(ge=2, le=49, description="fewest usable pixels in a window")] = 2
    threshold: Annotated[float, Field(description="strong pixels are above this, photons")] = 0.0

    def strong_pixels(self, frame: Frame, workspace: Workspace) -> NDArray[np.int32]:
        """Return the flat indices of strong pixels, ascending (a view of the workspace)."""
        limits = pixel_limits(frame.pixels.dtype, frame.trusted)
        index, state = workspace.index, workspace.state
        _, height, width = frame.pixels.shape
        n = strong_by_dispersion(
            frame.pixels, frame.mask, limits, self.gain, self.sigma_background, 0.0, self.min_local, -np.inf, False, index
        )
        candidates = workspace.region[:n]
        candidates[:] = index[:n]
        workspace.clean = False
        erode(candidates, height, width, HALF, state)
        n = brighter_than_clean_mean(
            frame.pixels,
            frame.mask,
            limits,
            candidates,
            state,
            HALF + 2,
            self.gain,
            self.sigma_strong,
            self.min_local,
            self.threshold,
            index,
        )
        clear(state, candidates)
        workspace.clean = True
        return index[:n]
