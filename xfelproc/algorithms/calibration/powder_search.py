"""The first look for powder rings: which centre makes them sharpest, which distance puts them at their radii."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.models.experiment import Beam, Detector

Floats = NDArray[np.float64]

MOST_PIXELS = 200_000
BLOCK = 32
"""Edge of the blocks whose median is taken for the background, px."""


@dataclass(frozen=True)
class Plane:
    """The plane across the beam at the detector's mean distance, in pixels of the first panel from the beam.

    ``axes`` (3, 3) has the rows: laboratory x and y as far as they are across the beam, and the beam's direction of travel.
    """

    axes: Floats
    distance: float
    pixel: float

    @staticmethod
    def frame(beam: Beam) -> Floats:
        """Return `axes`."""
        forward = -np.asarray(beam.direction, dtype=np.float64)
        forward /= np.linalg.norm(forward)
        x = np.array([1.0, 0.0, 0.0]) - forward[0] * forward
        x /= np.linalg.norm(x)
        return np.array([x, np.cross(x, forward) if forward[2] < 0 else np.cross(forward, x), forward])

    @classmethod
    def of(cls, detector: Detector, beam: Beam) -> Plane:
        """Return the plane of a detector."""
        axes = cls.frame(beam)
        return cls(axes, float(axes[2] @ detector.centre), detector.panels[0].pixel_size[0])

    def project(self, detector: Detector, number: int) -> tuple[Floats, Floats]:
        """Return where the pixels' centres of a panel (slow, fast of the stack) are seen in the plane, px; parallax is left out."""
        _, n_slow, n_fast = detector.stack_shape
        d, size = self.axes @ detector.d_matrices[number], detector.pixel_sizes[number]
        fast, slow = (np.arange(n_fast) + 0.5) * size[0], (np.arange(n_slow) + 0.5) * size[1]
        x, y, z = ((d[i, 0] * fast)[None, :] + (d[i, 1] * slow)[:, None] + d[i, 2] for i in range(3))
        factor = self.distance / self.pixel / np.where(z > 0, z, np.nan)
        return x * factor, y * factor

    def rays(self, x: Floats, y: Floats) -> Floats:
        """Return (n, 3) directions in the laboratory of places in the plane (px)."""
        points = np.column_stack([x * self.pixel, y * self.pixel, np.full(len(x), self.distance)])
        rays: Floats = points @ self.axes
        return rays


@dataclass(frozen=True)
class FlatImage:
    """Pixels as points in the plane (px), with their values above the background."""

    x: Floats
    y: Floats
    value: Floats


def flattened(image: NDArray[Any], good: NDArray[np.bool_], plane: Plane, detector: Detector) -> FlatImage:
    """Return usable pixels, thinned out evenly where there are very many, less the median of their block, clipped."""
    step = max(1, int(np.ceil(np.count_nonzero(good) / MOST_PIXELS)))
    xs, ys, values = [], [], []
    for number in range(len(detector)):
        x, y = plane.project(detector, number)
        flat = _less_background(image[number].astype(np.float64), good[number])
        chosen = np.flatnonzero(good[number] & np.isfinite(x) & np.isfinite(flat))
        chosen = chosen[np.random.default_rng(number).random(len(chosen)) < 1.0 / step] if step > 1 else chosen
        xs.append(x.flat[chosen])
        ys.append(y.flat[chosen])
        values.append(flat.flat[chosen])
    value = np.concatenate(values)
    spread = 1.4826 * float(np.median(np.abs(value - np.median(value))))
    # single bright pixels (Bragg spots, hot ones) must not decide
    return FlatImage(np.concatenate(xs), np.concatenate(ys), np.clip(value, -10 * spread, 10 * spread) if spread else value)


def _less_background(image: Floats, good: NDArray[np.bool_]) -> Floats:
    """Return an image (slow, fast) less the median of each block."""
    n_slow, n_fast = image.shape
    rows, columns = -(-n_slow // BLOCK), -(-n_fast // BLOCK)
    padded = np.full((rows * BLOCK, columns * BLOCK), np.nan)
    padded[:n_slow, :n_fast] = np.where(good, image, np.nan)
    blocks = padded.reshape(rows, BLOCK, columns, BLOCK).transpose(0, 2, 1, 3).reshape(rows, columns, -1)
    level = np.zeros((rows, columns))
    some = np.isfinite(blocks).any(axis=2)
    level[some] = np.nanmedian(blocks[some], axis=1)
    less: Floats = image - np.repeat(np.repeat(level, BLOCK, axis=0), BLOCK, axis=1)[:n_slow, :n_fast]
    return less


def sharpness(flat: FlatImage, x: float, y: float, width: float) -> float:
    """Return the sum of squares between rings ``width`` px wide about a centre (px): rings that are whole make it large."""
    ring = (np.hypot(flat.x - x, flat.y - y) / width).astype(np.int64)
    count = np.bincount(ring)
    total = np.bincount(ring, flat.value)
    enough = count >= 10
    return float(np.sum(total[enough] ** 2 / count[enough]))


def search_centre(flat: FlatImage, reach: float) -> Floats:
    """Return the centre (px) within ``reach`` of the recorded one about which the rings are sharpest."""
    best = np.zeros(2)
    width = max(1.0, min(4.0, reach / 2))
    while True:
        n = int(np.ceil(reach / width))
        offsets = np.arange(-n, n + 1) * width
        trials = [(sharpness(flat, best[0] + dx, best[1] + dy, width), dx, dy) for dx in offsets for dy in offsets]
        _, dx, dy = max(trials)
        best += np.array([dx, dy])
        if width <= 1.0:
            return best
        reach, width = 1.5 * width, 0.5 * width


def search_distance(flat: FlatImage, centre: Floats, radii: Floats, reach: float) -> float:
    """Return the factor on the distance, within ``reach`` of 1, by which the rings are best where they should be.

    ``radii`` (px) are those of the rings at the recorded distance. The profile along the radius is compared with peaks there; what
    it shows elsewhere speaks against a factor.
    """
    radius = np.hypot(flat.x - centre[0], flat.y - centre[1])
    ring = radius.astype(np.int64)
    count = np.bincount(ring)
    with np.errstate(invalid="ignore", divide="ignore"):
        profile = np.bincount(ring, flat.value) / count
    used = count >= 10
    if reach == 0 or np.count_nonzero(used) < 10:
        return 1.0
    spread = 1.0 / np.sqrt(count[used])  # noise of the rings' means, but for a factor
    signal = np.clip(profile[used], 0.0, None) / spread
    at = np.flatnonzero(used).astype(np.float64) + 0.5
    finite = radii[np.isfinite(radii)]
    step = 0.5 / float(at.max())
    factors = 1.0 + np.arange(-np.ceil(reach / step), np.ceil(reach / step) + 1) * step
    scores = [_likeness(signal, at, finite * float(factor)) for factor in factors]
    return float(factors[int(np.argmax(scores))])


def _likeness(signal: Floats, at: Floats, radii: Floats) -> float:
    inside = radii[(radii > at.min()) & (radii < at.max())]
    if len(inside) == 0:
        return -1.0
    model = np.exp(-0.5 * ((at[:, None] - inside[None, :]) / 2.0) ** 2).sum(axis=1)
    model, seen = model - model.mean(), signal - signal.mean()
    return float(model @ seen / np.sqrt((model @ model) * (seen @ seen) + 1e-30))
