"""Frames and detector images as pictures."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.geometry.detector import mm_to_lab
from xfelproc.models.experiment import Detector

GREYS = 48
"""More shades are not told apart by eye, and noise in them does not compress."""
NOTHING = (226, 232, 240)
"""Red, green, blue of what is no pixel."""


@dataclass(frozen=True)
class Canvas:
    """Maps the laboratory's x, y (mm) to a picture: x to the right as seen from the source, y up; ``pixel`` in mm."""

    x0: float
    y1: float
    pixel: float
    width: int
    height: int

    def place(self, detector: Detector, panel: Any, fast: Any, slow: Any) -> NDArray[np.float64]:
        """Return (n, 2) positions on the picture (column, row) of pixel coordinates."""
        panel = np.atleast_1d(np.asarray(panel, dtype=np.int64))
        xy = np.column_stack([np.atleast_1d(fast), np.atleast_1d(slow)]) * detector.pixel_sizes[panel]
        lab = mm_to_lab(detector, panel, xy)
        # the beam goes towards -z: seen along it, +x is to the right and y is up
        return np.column_stack([(lab[:, 0] - self.x0) / self.pixel, (self.y1 - lab[:, 1]) / self.pixel])


def canvas_of(detector: Detector, longest: int = 1000) -> Canvas:
    """Return a canvas that holds the detector, its longer side at most ``longest`` pixels, none finer than the detector's."""
    corners = []
    for number, panel in enumerate(detector.panels):
        f, s = panel.image_size[0] * panel.pixel_size[0], panel.image_size[1] * panel.pixel_size[1]
        outline = np.array([[0.0, 0.0], [f, 0.0], [0.0, s], [f, s]])
        corners.append(mm_to_lab(detector, number, outline)[:, :2])
    low, high = np.min(np.concatenate(corners), axis=0), np.max(np.concatenate(corners), axis=0)
    pixel = max(float(np.max(high - low)) / longest, float(detector.pixel_sizes.min()))
    width, height = (int(np.ceil(v / pixel)) + 1 for v in high - low)
    return Canvas(float(low[0]), float(high[1]), pixel, width, height)


def assemble(detector: Detector, stack: NDArray[Any], good: NDArray[np.bool_] | None, canvas: Canvas) -> NDArray[np.float64]:
    """Return the picture (height, width) of a stack (panel, slow, fast), the largest value where pixels share a place; NaN: none.

    The stack may be binned: its cells then cover the panel evenly.
    """
    picture = np.full(canvas.width * canvas.height, -np.inf)
    for number, values in enumerate(stack):
        n_slow, n_fast = values.shape
        size = detector.image_sizes[number]
        step = np.ceil(detector.stack_shape[2] / n_fast), np.ceil(detector.stack_shape[1] / n_slow)
        fast, slow = (np.arange(n_fast) + 0.5) * step[0], (np.arange(n_slow) + 0.5) * step[1]
        grid_fast, grid_slow = np.meshgrid(fast, slow)
        place = canvas.place(detector, np.full(values.size, number), grid_fast.ravel(), grid_slow.ravel())
        column, row = np.floor(place).astype(np.int64).T
        keep = (grid_fast.ravel() < size[0]) & (grid_slow.ravel() < size[1])
        keep &= (column >= 0) & (column < canvas.width) & (row >= 0) & (row < canvas.height)
        if good is not None:
            keep &= good[number].ravel()
        np.maximum.at(picture, (row * canvas.width + column)[keep], values.ravel()[keep].astype(np.float64))
    picture[np.isneginf(picture)] = np.nan
    return picture.reshape(canvas.height, canvas.width)


def png(picture: NDArray[np.float64], percentile: float = 99.5, dark_on_light: bool = True) -> str:
    """Return a data URI of the picture; see `png_bytes`."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(picture, percentile, dark_on_light)).decode()


def png_bytes(picture: NDArray[np.float64], percentile: float = 99.5, dark_on_light: bool = True) -> bytes:
    """Return the picture as PNG, grey from its 5th to the given percentile; NaN is drawn in a tint of its own."""
    from PIL import Image

    finite = np.isfinite(picture)
    low, high = np.percentile(picture[finite], [5, percentile]) if finite.any() else (0.0, 1.0)
    scaled = np.clip((np.where(finite, picture, low) - low) / max(high - low, 1e-9), 0, 1)
    level = np.round((GREYS - 1) * (1 - scaled if dark_on_light else scaled)).astype(np.uint8)
    level[~finite] = GREYS
    image = Image.fromarray(level)
    image.putpalette([v for grey in np.linspace(0, 255, GREYS).astype(int).tolist() for v in (grey, grey, grey)] + list(NOTHING))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
