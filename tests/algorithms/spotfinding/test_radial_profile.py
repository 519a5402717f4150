from __future__ import annotations

import numpy as np

from tests.algorithms.spotfinding.frames import expected, frame_of, grid
from xfelproc.algorithms.spotfinding.radial_profile import RadialProfile, ring_map
from xfelproc.algorithms.spotfinding.workspace import workspace_for


def test_rings_are_radii_in_pixels() -> None:
    frame = frame_of(np.zeros((200, 200), dtype=np.uint16))
    rings, n = ring_map(frame.detector, frame.beam.direction, 2.0)
    y, x = np.mgrid[:200, :200] + 0.5
    assert np.abs(rings[0] - np.floor(np.hypot(x - 100, y - 100) / 2)).max() <= 1
    assert (rings[0] != np.floor(np.hypot(x - 100, y - 100) / 2)).mean() < 0.001
    assert n == rings.max() + 1


def test_agrees_with_plain_numpy() -> None:
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:300, :300] + 0.5
    powder = 3 + 20 * np.exp(-((np.hypot(x - 150, y - 150) - 80) ** 2) / 200)
    mean = powder + expected((300, 300), 0.0, grid(300, 300, 200.0, rng))
    frame = frame_of(rng.poisson(mean).astype(np.uint16))
    method = RadialProfile(cycles=2)
    strong = np.zeros(frame.pixels.shape, dtype=bool)
    strong.ravel()[method.strong_pixels(frame, workspace_for(frame.pixels.shape, frame.pixels.dtype))] = True
    rings, n = ring_map(frame.detector, frame.beam.direction, method.ring_bin)
    wanted = np.zeros_like(strong[0])
    values = frame.pixels[0].astype(float)
    for r in range(n):
        inside = rings[0] == r
        clip = np.inf
        for cycle in range(3):
            rows = inside.copy()
            if cycle < 2:
                rows[np.arange(300) % 4 != 0] = False
            v = values[rows & (values <= clip)]
            if len(v):
                clip = v.mean() + max(4 * v.std(), 1.0)
        if len(v) >= 20:
            wanted |= inside & (values > v.mean() + 5 * np.sqrt(max(v.var(), v.mean())))
    assert wanted.sum() > 300
    assert np.array_equal(strong[0], wanted)
