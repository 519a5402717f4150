"""Static masks: what a run, the geometry and the user say of pixels, with the reasons as bits of `PixelMask`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from xfelproc.algorithms.calibration.average import Average
from xfelproc.algorithms.calibration.calibrants import CALIBRANTS
from xfelproc.algorithms.calibration.shadows import find_shadows
from xfelproc.errors import ConfigError
from xfelproc.geometry.detector import resolution_map
from xfelproc.models.conventions import MaskBit, PixelMask
from xfelproc.models.experiment import Beam, Detector
from xfelproc.models.parameters import Parameters

Bits = NDArray[np.uint32]
Floats = NDArray[np.float64]

BLOCK = 16
"""Edge of the blocks by whose median and scatter a pixel is judged, px."""
ENOUGH_FRAMES = 20
"""With fewer frames nothing is told of single pixels."""
OFTEN = 0.05
"""A pixel deviates if it does so in at least this share of the frames: Bragg spots visit a pixel less often."""
SURE_PHOTONS = 20.0
"""Photons that a pixel should have had by its neighbours before one without any is called dead: chance gives exp(-20)."""
FACTOR = 2.0
"""A deviating pixel differs by this factor from its neighbours, however small their scatter."""


@dataclass(frozen=True)
class _Local:
    """Median of its block at each pixel, interpolated, and the robust scatter about it: of all pixels, and of those below it.

    Spots make the scatter upwards wide, not that downwards.
    """

    level: Floats
    scatter: Floats
    below: Floats


class StaticMask(Parameters):
    """Which pixels are never used."""

    pixels: Annotated[bool, Field(description="find pixels that deviate from their neighbours")] = True
    n_sigma: Annotated[float, Field(gt=2, le=1000, description="by how many robust σ of their block they deviate")] = 10.0
    shadow: Annotated[bool, Field(description="find beam stop and shadows")] = True
    shadow_level: Annotated[float, Field(gt=0, lt=1, description="what is below this share of its ring is in shadow")] = 0.5
    shadow_grow: Annotated[int, Field(ge=0, le=100, description="by how many pixels shadows are enlarged")] = 3
    edge_pixels: Annotated[int, Field(ge=0, le=100, description="pixels along each panel edge")] = 0
    d_min: Annotated[float | None, Field(gt=0, description="finest resolution that is used, Å")] = None
    d_max: Annotated[float | None, Field(gt=0, description="coarsest resolution that is used, Å")] = None
    ice: Annotated[bool, Field(description="mask the rings of hexagonal ice")] = False
    ice_width: Annotated[float, Field(gt=0, lt=0.2, description="half the width of an ice ring, relative to d")] = 0.006

    def of_geometry(self, detector: Detector, beam: Beam) -> Bits:
        """Return (panel, slow, fast) what the geometry alone says: gaps, untrusted rectangles, edges, resolution, ice.

        Raises
        ------
        ConfigError
            If the resolution limits leave nothing.
        """
        if self.d_min is not None and self.d_max is not None and self.d_min >= self.d_max:
            raise ConfigError(f"d_min = {self.d_min:g} Å is not finer than d_max = {self.d_max:g} Å: nothing would be left")
        mask = np.zeros(detector.stack_shape, dtype=np.uint32)
        for number, panel in enumerate(detector.panels):
            n_fast, n_slow = panel.image_size
            mask[number, n_slow:] |= np.uint32(PixelMask.GAP)
            mask[number, :n_slow, n_fast:] |= np.uint32(PixelMask.GAP)
            for fast0, slow0, fast1, slow1 in panel.mask:
                mask[number, max(0, slow0) : max(0, slow1), max(0, fast0) : max(0, fast1)] |= np.uint32(PixelMask.USER)
            if self.edge_pixels:
                inner = np.zeros((n_slow, n_fast), dtype=np.bool_)
                inner[self.edge_pixels : n_slow - self.edge_pixels, self.edge_pixels : n_fast - self.edge_pixels] = True
                mask[number, :n_slow, :n_fast][~inner] |= np.uint32(PixelMask.EDGE)
        if self.d_min is not None or self.d_max is not None or self.ice:
            self._resolution(mask, resolution_map(detector, beam))
        return mask

    def _resolution(self, mask: Bits, d: NDArray[np.float32]) -> None:
        outside = np.zeros(d.shape, dtype=np.bool_)
        if self.d_min is not None:
            outside |= d < self.d_min
        if self.d_max is not None:
            outside |= d > self.d_max
        mask[outside] |= np.uint32(PixelMask.RESOLUTION)
        if self.ice:
            for ring in CALIBRANTS["ice"]:
                mask[np.abs(d / np.float32(ring) - 1.0) < self.ice_width] |= np.uint32(PixelMask.ICE)

    def of_run(self, average: Average, mask: Bits, detector: Detector, beam: Beam) -> Bits:
        """Return what the images of a run say of the pixels that ``mask`` leaves.

        Gaps and masked pixels were never measured, and are not judged: the mask of the frames says why.
        """
        good = (average.count > 0) & ((mask & ~np.uint32(PixelMask.ICE | PixelMask.RESOLUTION | PixelMask.EDGE)) == 0)
        found = np.zeros(mask.shape, dtype=np.uint32)
        if self.shadow:
            # single bad pixels are no matter here: the image is smoothed
            dark = find_shadows(average.mean, average.sd, average.count, good, detector, beam, self.shadow_level, self.shadow_grow)
            found[dark & (mask & np.uint32(PixelMask.GAP) == 0)] |= np.uint32(PixelMask.SHADOW)
        if self.pixels and average.n_frames >= ENOUGH_FRAMES:
            judged = good & (found == 0)
            for number in range(len(found)):
                found[number] |= self._pixels(average, number, judged[number])
        return found

    def _pixels(self, average: Average, number: int, judged: NDArray[np.bool_]) -> Bits:
        """Return the deviating pixels of a panel."""
        n = average.count[number].astype(np.float64)
        mean, sd = average.mean[number].astype(np.float64), average.sd[number].astype(np.float64)
        maximum = average.maximum[number].astype(np.float64)
        found = np.zeros(mean.shape, dtype=np.uint32)
        judged = judged & np.isfinite(mean) & np.isfinite(sd) & np.isfinite(maximum)
        if not judged.any():
            return found
        means, sds = _local(mean, judged), _local(sd, judged)
        # the share of frames that would give this sd if all were zero but for some at the maximum
        share = (sd / np.maximum(maximum - mean, 1e-12)) ** 2
        often = judged & (share > OFTEN)
        scatter = np.maximum(means.scatter, sds.level / np.sqrt(np.maximum(n, 1)))
        excess = mean - means.level
        # rare events give a mean that is too high by their share times their height, which is at most the maximum's
        frequent = excess > OFTEN * (maximum - means.level)
        hot = (excess > self.n_sigma * scatter) & (excess > (FACTOR - 1) * np.abs(means.level)) & frequent
        least = np.maximum(means.below, np.sqrt(np.maximum(means.level, 0.0) / np.maximum(n, 1)))
        # no spot makes a pixel dark: half as many σ are as sure
        cold = (-excess > 0.5 * self.n_sigma * least) & (mean < means.level / FACTOR)
        noisy = (sd - sds.level > self.n_sigma * sds.scatter) & (sd > FACTOR * sds.level) & often
        silent = (sd == 0) & (sds.level > 0) & (means.level * n > SURE_PHOTONS)
        found[judged & hot] |= np.uint32(PixelMask.HOT)
        found[judged & cold & ~silent] |= np.uint32(PixelMask.COLD)
        found[judged & noisy] |= np.uint32(PixelMask.DEVIANT)
        found[judged & silent & (mean <= means.level)] |= np.uint32(PixelMask.DEAD)
        found[judged & silent & (mean > means.level)] |= np.uint32(PixelMask.STUCK)
        return found


def _local(image: Floats, judged: NDArray[np.bool_]) -> _Local:
    """Return level and scatter about each pixel of a panel (slow, fast): robust over blocks, the level interpolated."""
    n_slow, n_fast = image.shape
    rows, columns = max(1, n_slow // BLOCK), max(1, n_fast // BLOCK)
    row = np.minimum(np.arange(n_slow) * rows // n_slow, rows - 1)
    column = np.minimum(np.arange(n_fast) * columns // n_fast, columns - 1)
    block = row[:, None] * columns + column[None, :]
    level = _medians(image, block, judged, rows * columns)
    smooth = _interpolated(level.reshape(rows, columns), n_slow, n_fast)
    scatter = 1.4826 * _medians(np.abs(image - smooth), block, judged, rows * columns)
    below = 1.4826 * _medians(smooth - image, block, judged & (image <= smooth), rows * columns)
    return _Local(smooth, scatter[block], below[block])


def _medians(image: Floats, block: NDArray[np.int64], judged: NDArray[np.bool_], n: int) -> Floats:
    """Return the median of each block's usable pixels; blocks without any have that of all."""
    blocks, values = block[judged], image[judged]
    order = np.lexsort((values, blocks))
    counts = np.bincount(blocks, minlength=n)
    starts = np.cumsum(counts) - counts
    medians = np.full(n, float(np.median(values)) if len(values) else 0.0)
    some = counts > 0
    medians[some] = values[order][(starts + counts // 2)[some]]
    return medians


def _interpolated(level: Floats, n_slow: int, n_fast: int) -> Floats:
    """Return block values (row, column) as a smooth image (slow, fast): bilinear between the blocks' centres."""
    rows, columns = level.shape
    slow = np.clip((np.arange(n_slow) + 0.5) * rows / n_slow - 0.5, 0, rows - 1)
    fast = np.clip((np.arange(n_fast) + 0.5) * columns / n_fast - 0.5, 0, columns - 1)
    r, c = np.minimum(slow.astype(np.int64), max(0, rows - 2)), np.minimum(fast.astype(np.int64), max(0, columns - 2))
    u, v = (slow - r)[:, None], (fast - c)[None, :]
    r1, c1 = np.minimum(r + 1, rows - 1), np.minimum(c + 1, columns - 1)
    top = level[r][:, c] * (1 - v) + level[r][:, c1] * v
    bottom = level[r1][:, c] * (1 - v) + level[r1][:, c1] * v
    smooth: Floats = top * (1 - u) + bottom * u
    return smooth


_OF_FRAMES = {
    MaskBit.BAD: PixelMask.USER,
    MaskBit.REGION: PixelMask.USER,
    MaskBit.EDGE: PixelMask.EDGE,
    MaskBit.RESOLUTION: PixelMask.RESOLUTION,
    MaskBit.CALIBRATION: PixelMask.NO_GAIN,
    MaskBit.PADDING: PixelMask.GAP,
}


def reasons_of(mask: NDArray[np.uint8]) -> Bits:
    """Return the reasons of a static mask of frames (MaskBit)."""
    found = np.zeros(mask.shape, dtype=np.uint32)
    for bit, reason in _OF_FRAMES.items():
        found[mask & np.uint8(bit) != 0] |= np.uint32(reason)
    return found


def counts_of(mask: Bits) -> dict[str, int]:
    """Return how many pixels have each reason (and how many any, ``bad``); gaps are no pixels."""
    real = mask[mask & np.uint32(PixelMask.GAP) == 0]
    counts = {reason.name or "": int(np.count_nonzero(real & np.uint32(reason))) for reason in PixelMask if reason != PixelMask.GAP}
    return {name: n for name, n in counts.items() if n} | {"bad": int(np.count_nonzero(real))}
