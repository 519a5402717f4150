"""Frames of Poisson background with Gaussian spots at known places."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from xfelproc.models.experiment import Beam, Detector, Panel
from xfelproc.models.frames import Frame, FrameRef

BEAM = Beam(1.3)


def detector(n_fast: int, n_slow: int, panels: int = 1, high: float = 60000.0, low: float = float("-inf")) -> Detector:
    return Detector(
        tuple(
            Panel(
                f"p{i}",
                (1, 0, 0),
                (0, -1, 0),
                (-0.05 * n_fast, 0.05 * n_slow + 0.1 * (n_slow + 10) * i, -100),
                (0.1, 0.1),
                (n_fast, n_slow),
                (low, high),
            )
            for i in range(panels)
        )
    )


def gaussian(shape: tuple[int, int], fast: float, slow: float, sigma: float) -> NDArray[np.float64]:
    """Unit Gaussian integrated over pixels; (fast, slow) as everywhere: the first pixel's centre is at 0.5."""

    def along(n: int, centre: float) -> NDArray[np.float64]:
        return np.diff(0.5 * erf((np.arange(n + 1) - centre) / (sigma * np.sqrt(2.0))))

    return np.outer(along(shape[0], slow), along(shape[1], fast))


def expected(shape: tuple[int, int], background: float, spots: NDArray[np.float64], sigma: float = 0.8) -> NDArray[np.float64]:
    """Mean counts; ``spots`` (n, 3) is fast, slow, photons."""
    image = np.full(shape, background)
    for fast, slow, photons in spots:
        x0, y0 = max(0, int(fast) - 8), max(0, int(slow) - 8)
        box = image[y0 : y0 + 17, x0 : x0 + 17]
        box += photons * gaussian(box.shape, fast - x0, slow - y0, sigma)
    return image


def frame_of(
    pixels: NDArray[Any], mask: NDArray[np.uint8] | None = None, high: float = 60000.0, low: float = float("-inf")
) -> Frame:
    stack = np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels)
    model = detector(stack.shape[2], stack.shape[1], stack.shape[0], high, low)
    used = np.zeros(stack.shape, dtype=np.uint8) if mask is None else np.ascontiguousarray(mask.reshape(stack.shape))
    return Frame(FrameRef(0, 0), stack, used, model.trusted_ranges, model, BEAM)


def grid(n_fast: int, n_slow: int, photons: float, rng: np.random.Generator, pitch: int = 25) -> NDArray[np.float64]:
    """Spots near the nodes of a grid, at random places inside their pixels."""
    fast, slow = np.meshgrid(np.arange(pitch, n_fast - pitch / 2, pitch), np.arange(pitch, n_slow - pitch / 2, pitch))
    nodes = np.column_stack([fast.ravel(), slow.ravel()]) + rng.uniform(0, 1, (fast.size, 2))
    return np.column_stack([nodes, np.full(len(nodes), photons)])
