from __future__ import annotations

import numpy as np
import pytest
from scipy.special import erf

from xfelproc.kernels.integration import integrate_still, robust_plane, select_middle
from xfelproc.models.conventions import ReflectionFlag

RADII = (3.0, 5.0, 8.0)
Arrays = tuple[np.ndarray, np.ndarray]


def sum_all(
    image: np.ndarray,
    fast: np.ndarray,
    slow: np.ndarray,
    mask: np.ndarray | None = None,
    form: tuple[float, float, float] = (1.0, 0.0, 1.0),
    trusted: tuple[float, float] = (-1e9, 60000.0),
) -> Arrays:
    n = len(fast)
    out, flags = np.zeros((n, 5)), np.zeros(n, dtype=np.uint16)
    stack = np.ascontiguousarray(image[None])
    empty = np.zeros(stack.shape, dtype=np.uint8) if mask is None else np.ascontiguousarray(mask[None])
    sizes = np.array([[image.shape[1], image.shape[0]]])
    integrate_still(
        stack,
        empty,
        np.array([trusted]),
        sizes,
        np.zeros(n, np.int32),
        fast,
        slow,
        np.tile([*form, *RADII, 0.0], (n, 1)),
        4.0,
        30,
        out,
        flags,
    )
    return out, flags


def scene(
    background: float, slope: float, intensity: float, noise: float = 0.0, seed: int = 0, size: int = 1000, pitch: int = 24
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return Poisson counts of Gaussian spots on a tilted background, and the spots' positions."""
    rng = np.random.default_rng(seed)
    grid = np.arange(20, size - 20, pitch)
    fast, slow = (v.ravel() + rng.uniform(0, 1, grid.size**2) for v in np.meshgrid(grid, grid))
    y, x = np.mgrid[:size, :size] + 0.5
    mean = background + slope * (x - size / 2) + 0.5 * slope * (y - size / 2)
    for cx, cy in zip(fast, slow, strict=True):
        i, j = int(cx) - 5, int(cy) - 5
        profile = [np.diff(0.5 * (1 + erf((np.arange(k, k + 12) - c) / (0.6 * np.sqrt(2))))) for k, c in ((i, cx), (j, cy))]
        mean[j : j + 11, i : i + 11] += intensity * np.outer(profile[1], profile[0])
    image = rng.poisson(mean).astype(np.float64)
    return image + noise * rng.normal(size=image.shape) if noise else image, fast, slow


@pytest.mark.parametrize(
    ("background", "slope", "intensity", "noise", "dtype"),
    [
        (3.0, 0.002, 0.0, 0.0, np.uint16),
        (3.0, 0.002, 100.0, 0.0, np.uint16),
        (0.1, 0.0, 30.0, 0.0, np.uint16),
        (40.0, 0.05, 300.0, 0.0, np.int32),
        (1.0, 0.001, 80.0, 2.5, np.float32),
    ],
)
def test_unbiased_with_calibrated_sigma(background: float, slope: float, intensity: float, noise: float, dtype: type) -> None:
    image, fast, slow = scene(background, slope, intensity, noise)
    out, flags = sum_all(image.astype(dtype), fast, slow)
    assert np.all(flags == ReflectionFlag.INTEGRATED)
    error = out[:, 0] - intensity
    assert abs(error.mean()) < 3.5 * error.std() / np.sqrt(len(error))
    pull = error / out[:, 1]
    if background + intensity / 30 >= 3:  # with few counts sigma goes with the intensity itself, and the pull is skew
        assert abs(pull.mean()) < 3.5 / np.sqrt(len(pull))
    assert 0.93 < pull.std() < 1.1
    expected = background + slope * (fast - 500) + 0.5 * slope * (slow - 500)
    assert np.mean(out[:, 2] - expected) == pytest.approx(0.0, abs=0.02 * np.sqrt(background + noise**2 + 1))
    assert np.all((out[:, 4] >= 25) & (out[:, 4] <= 32))


def reference(image: np.ndarray, cx: float, cy: float) -> tuple[float, float, float]:
    """Sum over the disc less a plane fitted by lstsq to the ring, without rejection."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    r2 = (x - cx) ** 2 + (y - cy) ** 2
    peak, ring = r2 <= 9.0, (r2 >= 25.0) & (r2 <= 64.0)
    design = np.column_stack([np.ones(ring.sum()), x[ring] - cx, y[ring] - cy])
    plane, rest, _, _ = np.linalg.lstsq(design, image[ring], rcond=None)
    inner = np.column_stack([np.ones(peak.sum()), x[peak] - cx, y[peak] - cy])
    intensity = image[peak].sum() - (inner @ plane).sum()
    variance = rest[0] / (ring.sum() - 3) + 1.0 / ring.sum()
    a = inner.sum(axis=0)
    spread = a @ np.linalg.inv(design.T @ design) @ a
    return intensity, np.sqrt(max(intensity, 0.0) + variance * (peak.sum() + spread)), plane[0]


def test_against_plain_least_squares() -> None:
    image, fast, slow = scene(20.0, 0.05, 200.0, size=200)
    out, _ = sum_all(image, fast, slow)
    for i in range(len(fast)):
        assert out[i, :3] == pytest.approx(reference(image, fast[i], slow[i]), rel=1e-9, abs=1e-7)


def test_background_ignores_a_stray_spot() -> None:
    image, fast, slow = scene(3.0, 0.0, 100.0)
    clean, _ = sum_all(image, fast, slow)
    for cx, cy in zip(fast, slow, strict=True):
        image[int(cy) - 1 : int(cy) + 2, int(cx) + 5 : int(cx) + 8] += 1000
    out, flags = sum_all(image, fast, slow)
    assert np.all(flags == ReflectionFlag.INTEGRATED)
    assert np.mean(out[:, 0] - clean[:, 0]) == pytest.approx(0.0, abs=1.0)
    assert np.std(out[:, 0] - clean[:, 0]) < 0.5 * np.median(out[:, 1])


def test_neighbours_are_kept_out_of_the_background() -> None:
    image, fast, slow = scene(3.0, 0.0, 0.0, size=400, pitch=60)
    fast2, slow2 = fast + 7.0, slow.copy()
    for cx, cy in zip(fast2, slow2, strict=True):
        image[int(cy) - 1 : int(cy) + 2, int(cx) - 1 : int(cx) + 2] += 4  # too weak to be clipped
    both, flags = sum_all(image, np.concatenate([fast, fast2]), np.concatenate([slow, slow2]))
    assert not np.any(flags & ReflectionFlag.OVERLAP)
    assert np.mean(both[: len(fast), 0]) == pytest.approx(0.0, abs=4.0)
    assert np.mean(both[len(fast) :, 0]) == pytest.approx(36.0, abs=4.0)


def test_flags() -> None:
    image, _, _ = scene(5.0, 0.0, 0.0, size=300)
    image = image.astype(np.float32)
    mask = np.zeros(image.shape, dtype=np.uint8)
    mask[100, 101] = 1
    image[200, 101] = 70000
    image[50, 202] = np.nan
    mask[240:260, 240:260] = 2
    mask[248:253, 248:253] = 0
    fast = np.array([101.2, 100.9, 203.1, 3.5, 1.5, 250.5, 150.0, 155.5])
    slow = np.array([99.5, 201.0, 49.4, 150.0, 150.0, 250.5, 150.0, 150.0])
    out, flags = sum_all(image, fast, slow, mask)
    f = ReflectionFlag
    expected = [
        f.BAD_PIXEL,
        f.OVERLOADED,
        f.BAD_PIXEL,
        f.EDGE | f.INTEGRATED | f.OVERLAP,
        f.EDGE | f.OVERLAP,
        f.BAD_PIXEL | f.BACKGROUND,
    ]
    assert flags.tolist() == [int(v) for v in [*expected, f.INTEGRATED | f.OVERLAP, f.INTEGRATED | f.OVERLAP]]
    assert out[1, 3] == 70000
    assert np.all(np.isfinite(out[3]))


def test_elliptical_region() -> None:
    image, _, _ = scene(2.0, 0.0, 0.0, size=300)
    image[:] = 2.0
    x, y = 150.5, 150.5
    image[150, 144:158] += 10.0
    angle = 0.0
    c, s = np.cos(angle), np.sin(angle)
    stretch = 1.0 / 2.5**2
    form = (stretch * c * c + s * s, (stretch - 1) * c * s, stretch * s * s + c * c)
    out, flags = sum_all(image, np.array([x]), np.array([y]), form=form)
    assert flags[0] == ReflectionFlag.INTEGRATED
    assert out[0, 0] == pytest.approx(140.0, abs=0.5)
    assert out[0, 4] == pytest.approx(np.pi * 9 * 2.5, rel=0.1)


def test_robust_plane_is_exact_on_a_plane_with_outliers() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-8, 8, (2, 100))
    v = 50 + 0.5 * x - 0.3 * y + 0.1 * rng.normal(size=100)
    v[:15] += 5000
    used, plane, inverse = np.empty(100, bool), np.zeros(3), np.zeros(6)
    kept, _ = robust_plane(x, y, v, used, 100, 4.0, 0.0, plane, inverse, np.empty(100))
    assert kept == 85
    assert plane == pytest.approx([50, 0.5, -0.3], abs=0.1)


def test_selection() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 10, 101):
        values = rng.integers(0, 20, n).astype(float)
        assert select_middle(values.copy(), n) == np.sort(values)[n // 2]
