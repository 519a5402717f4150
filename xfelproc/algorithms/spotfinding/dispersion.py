"""Index of dispersion (Kabsch 2010, Acta Cryst. D66, 125; Winter et al. 2018, Acta Cryst. D74, 85)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from xfelproc.algorithms.spotfinding.workspace import Workspace
from xfelproc.kernels.dispersion import strong_by_dispersion
from xfelproc.kernels.pixels import pixel_limits
from xfelproc.models.frames import Frame
from xfelproc.models.parameters import Algorithm


class Dispersion(Algorithm):
    """Pixels in windows of 7 x 7 that scatter more than counts do, and themselves above the window's mean."""

    GROW_BELOW: ClassVar[int] = 1_000_000
    """Strong pixels leave out the spot's foot: spots of all sizes are measured with the pixels that touch them."""
    method: Literal["dispersion"] = "dispersion"
    sigma_background: Annotated[
        float, Field(gt=0, le=1000, description="excess of the window's variance over its mean that means signal, σ")
    ] = 6.0
    sigma_strong: Annotated[float, Field(ge=0, le=1000, description="height of a strong pixel above the window's mean, σ")] = 3.0
    gain: Annotated[float, Field(gt=0, le=1e4, description="variance over mean of the background; 1 for photons")] = 1.0
    min_local: Annotated[int, Field(ge=2, le=49, description="fewest usable pixels in a window")] = 2
    threshold: Annotated[float, Field(description="strong pixels are above this, photons")] = 0.0

    def strong_pixels(self, frame: Frame, workspace: Workspace) -> NDArray[np.int32]:
        """Return the flat indices of strong pixels, ascending (a view of the workspace)."""
        n = strong_by_dispersion(
            frame.pixels,
            frame.mask,
            pixel_limits(frame.pixels.dtype, frame.trusted),
            self.gain,
            self.sigma_background,
            self.sigma_strong,
            self.min_local,
            self.threshold,
            True,
            workspace.index,
        )
        return workspace.index[:n]
