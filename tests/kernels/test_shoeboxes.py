"""Shoeboxes of made spots: their flux comes back, with true variances, by summation and by profile fitting."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.special import erf

from xfelproc.kernels.shoeboxes import EDGE, N_OUT, OUT, OVERLAP, cut_frame, integrate_shoeboxes, kabsch_axes, learn_profiles

SIZE, HALF, FRAMES = 13, 6, 5
PIXEL = 1e-3  # radians a pixel
SIGMA, SIGMA_PHI, WIDTH = 1.2, 0.7, 1.0  # px, frames, radians times ζ a frame (units of the angle are free here)
SEEN = np.sqrt(SIGMA**2 + 1 / 12)  # of the image, which pixels widen
COLUMN = {name: i for i, name in enumerate(OUT)}


def cumulative(x):
    return 0.5 * (1 + erf(x / np.sqrt(2)))


@dataclass
class Spots:
    """Reflections far from each other on one panel, each with its true flux."""

    place: np.ndarray
    flux: np.ndarray
    frames: np.ndarray

    def images(self, background: float, seed: int, noise: bool = True) -> np.ndarray:
        """Pixels integrated over their area and the exposure, by differences of the cumulative Gaussian."""
        stack = np.full((FRAMES, 40, 40 * len(self.flux)), background)
        edges_y = np.arange(41)
        for (x, y, z), flux in zip(self.place, self.flux, strict=True):
            edges_x = np.arange(40 * len(self.flux) + 1)
            fx, fy = np.diff(cumulative((edges_x - x) / SIGMA)), np.diff(cumulative((edges_y - y) / SIGMA))
            fz = np.diff(cumulative((np.arange(FRAMES + 1) - z) / SIGMA_PHI))
            stack += flux * fz[:, None, None] * fy[None, :, None] * fx[None, None, :]
        return np.random.default_rng(seed).poisson(stack).astype(np.float32) if noise else stack.astype(np.float32)


def spots(n: int, seed: int = 0, low: float = 5.0, high: float = 5000.0) -> Spots:
    random = np.random.default_rng(seed)
    place = np.column_stack([40 * np.arange(n) + random.uniform(19, 21, n), random.uniform(19, 21, n), random.uniform(2, 3, n)])
    return Spots(place, np.exp(random.uniform(np.log(low), np.log(high), n)), np.tile([0, FRAMES], (n, 1)))


def table_of(extent: float = 6.0, nodes: int = 61) -> np.ndarray:
    axis = np.linspace(-extent, extent, nodes)
    return (np.exp(-0.5 * (axis[:, None] ** 2 + axis[None] ** 2)) / (2 * np.pi))[None]


def cut(made: Spots, images: np.ndarray, mask: np.ndarray | None = None):
    n = len(made.flux)
    corner = np.floor(made.place[:, :2]).astype(np.int64) - HALF
    offset = np.arange(n) * FRAMES * SIZE * SIZE
    pool = np.empty(n * FRAMES * SIZE * SIZE, dtype=np.float32)
    hidden = np.zeros((1, *images.shape[1:]), np.uint8) if mask is None else mask
    for frame in range(FRAMES):
        rows = np.arange(n)
        at = offset + frame * SIZE * SIZE
        cut_frame(images[frame][None], hidden, np.array([[0.0, 1e6]]), rows, np.zeros(n, np.int32), corner, SIZE, at, pool)
    return pool, offset, corner


def integrated(made: Spots, images: np.ndarray, mask: np.ndarray | None = None, neighbours: list[list[int]] | None = None):
    n = len(made.flux)
    pool, offset, corner = cut(made, images, mask)
    jacobian, widths = np.tile(np.eye(2) * PIXEL, (n, 1, 1)), np.tile([SEEN * PIXEL, SEEN * PIXEL, SIGMA_PHI * WIDTH], (n, 1))
    lists = neighbours or [[] for _ in range(n)]
    start = np.concatenate([[0], np.cumsum([len(x) for x in lists])]).astype(np.int64)
    flat = np.array([i for x in lists for i in x], dtype=np.int64)
    out = np.empty((n, N_OUT))
    turn = np.full(n, WIDTH)
    region = np.zeros(n, np.int64)
    integrate_shoeboxes(
        pool,
        offset,
        corner,
        made.frames,
        SIZE,
        made.place,
        turn,
        jacobian,
        widths,
        3.2,
        flat,
        start,
        table_of(),
        region,
        6.0,
        20,
        out,
    )
    return {name: out[:, i] for name, i in COLUMN.items()}


def test_flux_without_noise() -> None:
    made = spots(30)
    found = integrated(made, made.images(5.0, 0, noise=False))
    np.testing.assert_allclose(found["sum"], made.flux, rtol=0.01, atol=0.5)
    np.testing.assert_allclose(found["profile"], made.flux, rtol=0.01, atol=0.5)
    np.testing.assert_allclose(found["background"], 5.0, atol=0.1)  # tails beyond 3.2 σ of 5000 photons


def test_variances_are_true_and_profiles_better_for_weak_ones() -> None:
    made = spots(400, low=3.0, high=30.0)
    found = integrated(made, made.images(2.0, 1))
    errors = {name: (found[name] - made.flux) / np.sqrt(found[f"var_{name}"]) for name in ("sum", "profile")}
    for name, values in errors.items():
        assert np.mean(values**2) == pytest.approx(1.0, abs=0.2), name
        assert abs(np.mean(values)) < 0.15, name
    assert np.std(found["profile"] - made.flux) < 0.9 * np.std(found["sum"] - made.flux)


def test_masked_pixels() -> None:
    made = spots(20, low=2000.0)
    mask = np.zeros((1, 40, 800), np.uint8)
    mask[0, :, ::40] = 0
    mask[0, 21, :] = 1
    found = integrated(made, made.images(3.0, 2), mask)
    assert (found["flags"].astype(int) & 4 == 4).all()
    np.testing.assert_allclose(found["profile"], made.flux, rtol=0.12)
    np.testing.assert_allclose(found["sum"], made.flux, rtol=0.12)
    assert (found["inside"] < 0.97).all()


def test_a_neighbour_does_not_count() -> None:
    """A strong spot beside a weak one, its flux neither in the weak one's sum nor in its background."""
    made = Spots(np.array([[20.0, 20.0, 2.5], [27.0, 20.0, 2.5]]), np.array([100.0, 20000.0]), np.tile([0, FRAMES], (2, 1)))
    images = made.images(3.0, 3, noise=False)
    found = integrated(made, images, neighbours=[[1], [0]])
    alone = integrated(made, images)
    assert abs(found["background"][0] - 3.0) < abs(alone["background"][0] - 3.0)
    assert found["profile"][0] == pytest.approx(100.0, rel=0.35)
    assert int(found["flags"][0]) & OVERLAP == OVERLAP or found["inside"][0] > 0.9
    assert not int(found["flags"][0]) & EDGE


def test_learned_profile_is_the_spots() -> None:
    made = spots(200, low=3000.0, high=9000.0)
    images = made.images(2.0, 4)
    found = integrated(made, images)
    n = len(made.flux)
    pool, offset, corner = cut(made, images)
    jacobian, widths = np.tile(np.eye(2) * PIXEL, (n, 1, 1)), np.tile([SEEN * PIXEL, SEEN * PIXEL, SIGMA_PHI * WIDTH], (n, 1))
    total, weight = np.zeros((1, 25, 25)), np.zeros((1, 25, 25))
    turn, region = np.full(n, WIDTH), np.zeros(n, np.int64)
    learn_profiles(
        pool, offset, corner, made.frames, SIZE, made.place, turn, jacobian, widths, np.arange(n),
        found["background"], found["sum"], region, 6.0, total, weight,
    )  # fmt: skip
    axis = np.linspace(-6.0, 6.0, 25)
    profile = (total / np.maximum(weight, 1e-9))[0]
    assert profile.sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(1.0, abs=0.05)
    second = np.sqrt((profile * axis[:, None] ** 2).sum() / profile.sum())
    assert second == pytest.approx(1.0, abs=0.15)  # widened by pixels and nodes


def test_axes_of_kabsch() -> None:
    """Turning the ray by a pixel changes e1 and e2 by the angles of the differences themselves."""
    panel = np.zeros(19)
    panel[0:3], panel[3:6] = (1, 0, 0), (0, -1, 0)
    panel[6:9] = (0, 0, -1)
    panel[9:12] = (-30, 40, -100)
    panel[12], panel[13], panel[14] = 100.0, 0.1, 0.1
    s0, s1 = np.array([0, 0, -1.0]), np.array([0.3, 0.2, -1.0])
    s1 /= np.linalg.norm(s1)
    out = np.empty((2, 2))
    kabsch_axes(s1, s0, panel, out)
    e1 = np.cross(s1, s0) / np.linalg.norm(np.cross(s1, s0))
    e2 = np.cross(s1, e1)
    point = s1 * 100.0 / -s1[2]
    for column, step in enumerate(([0.1, 0, 0], [0, -0.1, 0])):
        other = (point + step) / np.linalg.norm(point)
        np.testing.assert_allclose(out[:, column], [e1 @ (other - s1), e2 @ (other - s1)], rtol=1e-9)
