"""Reflections of a turning crystal: the angles at which they cross the Ewald sphere, and where.

A crystal's matrix ``A`` is taken to the laboratory at angle 0 (setting and fixed rotations of the goniometer applied); it turns
about the unit vector ``axis``. The condition |s0 + R(φ) q| = |s0| is ``a cos φ + b sin φ = c`` with a = s0·q - (s0·m)(q·m),
b = s0·(m × q) and c = -|q|²/2 - (s0·m)(q·m).
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.geometry import find_panel, ray_to_panel

Floats = NDArray[np.float64]
Indices = NDArray[np.int32]

N_COLUMNS = 8
"""fast, slow, φ (radians), d (Å), ζ, Lorentz factor, polarisation factor, 1 where the point enters the sphere and -1 where it
leaves."""


@njit(cache=True, nogil=True)
def crossing(x: float, y: float, z: float, s0: Floats, axis: Floats) -> tuple[float, float, bool]:
    """Return the angles (radians) at which a point at angle 0 leaves (first) and enters (second) the Ewald sphere, and if it does.

    |s0 + q|² = |s0|² + 2 (f cos(φ - φ0) - c), f > 0, falls after φ0: the point enters at φ0 + acos(c/f) and leaves at φ0 -
    acos(c/f). Where it does not, both are the angle at which it comes nearest.
    """
    beam_along = s0[0] * axis[0] + s0[1] * axis[1] + s0[2] * axis[2]
    along = x * axis[0] + y * axis[1] + z * axis[2]
    a = s0[0] * x + s0[1] * y + s0[2] * z - beam_along * along
    b = s0[0] * (axis[1] * z - axis[2] * y) + s0[1] * (axis[2] * x - axis[0] * z) + s0[2] * (axis[0] * y - axis[1] * x)
    c = -0.5 * (x * x + y * y + z * z) - beam_along * along
    f = np.sqrt(a * a + b * b)
    middle = np.arctan2(b, a)
    if abs(c) >= f:
        nearest = middle if c > 0.0 else middle + np.pi
        return nearest, nearest, False
    away = np.arccos(c / f)
    return middle - away, middle + away, True


@njit(cache=True, nogil=True)
def turned(x: float, y: float, z: float, axis: Floats, phi: float) -> tuple[float, float, float]:
    """Return a vector turned about a unit vector (Rodrigues)."""
    cosine, sine = np.cos(phi), np.sin(phi)
    along = (x * axis[0] + y * axis[1] + z * axis[2]) * (1.0 - cosine)
    return (
        x * cosine + (axis[1] * z - axis[2] * y) * sine + axis[0] * along,
        y * cosine + (axis[2] * x - axis[0] * z) * sine + axis[1] * along,
        z * cosine + (axis[0] * y - axis[1] * x) * sine + axis[2] * along,
    )


@njit(cache=True, nogil=True)
def zeta_of(x: float, y: float, z: float, s0: Floats, axis: Floats) -> tuple[float, float]:
    """Return ζ = m · e1, with e1 along s1 × s0, and the Lorentz factor |s0|² / |m · (s1 × s0)| of a diffracted ray s1.

    Kabsch (1988) J. Appl. Cryst. 21, 916; (2010) Acta Cryst. D66, 133.
    """
    u = y * s0[2] - z * s0[1]
    v = z * s0[0] - x * s0[2]
    w = x * s0[1] - y * s0[0]
    norm = np.sqrt(u * u + v * v + w * w)
    if norm == 0.0:
        return 0.0, np.inf
    volume = axis[0] * u + axis[1] * v + axis[2] * w
    zeta = volume / norm
    if volume == 0.0:
        return 0.0, np.inf
    return zeta, (s0[0] * s0[0] + s0[1] * s0[1] + s0[2] * s0[2]) / abs(volume)


@njit(cache=True, nogil=True)
def matrix_at(matrices: Floats, first: float, step: float, phi: float, out: Floats) -> None:
    """Write the crystal's matrix at angle φ, linear between those (n, 3, 3) at first, first + step, ..."""
    n = matrices.shape[0]
    if n == 1:
        out[:] = matrices[0]
        return
    place = min(max((phi - first) / step, 0.0), n - 1.0)
    k = min(int(place), n - 2)
    part = place - k
    for i in range(3):
        for j in range(3):
            out[i, j] = (1.0 - part) * matrices[k, i, j] + part * matrices[k + 1, i, j]


@njit(cache=True, nogil=True)
def nearest_turn(phi: float, wanted: float) -> float:
    """Return φ plus the whole number of turns that brings it nearest to ``wanted``."""
    return float(phi + 2.0 * np.pi * np.rint((wanted - phi) / (2.0 * np.pi)))


@njit(cache=True, nogil=True)
def settle(
    h: NDArray[np.int64], side: int, phi: float, matrices: Floats, first: float, step: float, s0: Floats, axis: Floats, work: Floats
) -> tuple[float, float, float, float]:
    """Return the angle near ``phi`` at which index ``h`` crosses on ``side`` (0 leaves, 1 enters), and its point at angle 0.

    The angle and the matrix at the angle are found in turns; orientations that drift by less than the crystal turns make
    that converge. NaN: it does not cross.
    """
    x = y = z = 0.0
    crosses = False
    for _ in range(12):
        matrix_at(matrices, first, step, phi, work)
        x = work[0, 0] * h[0] + work[0, 1] * h[1] + work[0, 2] * h[2]
        y = work[1, 0] * h[0] + work[1, 1] * h[1] + work[1, 2] * h[2]
        z = work[2, 0] * h[0] + work[2, 1] * h[1] + work[2, 2] * h[2]
        leaves, enters, crosses = crossing(x, y, z, s0, axis)
        new = nearest_turn(enters if side else leaves, phi)
        moved = abs(new - phi)
        phi = new
        if moved < 1e-9 or matrices.shape[0] == 1:
            break
    return phi if crosses else np.nan, x, y, z


@njit(cache=True, nogil=True)
def _polarization(axes: Floats, x: float, y: float, z: float) -> float:
    """Return the polarisation factor of a ray; as `xfelproc.geometry.detector.polarization_factor`."""
    norm2 = x * x + y * y + z * z
    along = x * axes[0] + y * axes[1] + z * axes[2]
    across = x * axes[3] + y * axes[4] + z * axes[5]
    return float(axes[6] * (1.0 - along * along / norm2) + (1.0 - axes[6]) * (1.0 - across * across / norm2))


@njit(cache=True, nogil=True)
def _absent(centring: NDArray[np.int64], h: NDArray[np.int64]) -> bool:
    """Return whether a centring translation (in 1/24 of the cell) forbids an index."""
    for t in range(centring.shape[0]):  # noqa: SIM110  (numba has no generators)
        if (h[0] * centring[t, 0] + h[1] * centring[t, 1] + h[2] * centring[t, 2]) % 24 != 0:
            return True
    return False


@njit(cache=True, nogil=True)
def _row_ends(a: Floats, k: float, m: float, q_max2: float) -> tuple[int, int]:
    """Return the first and last h of the row (h, k, m) inside the sphere |q|² ≤ q_max2; the last is smaller where there is none."""
    aa = along = rest = 0.0
    for i in range(3):
        w = a[i, 1] * k + a[i, 2] * m
        aa += a[i, 0] * a[i, 0]
        along += a[i, 0] * w
        rest += w * w
    middle = -along / aa
    reach2 = (q_max2 - rest) / aa + middle * middle
    if reach2 < 0.0:
        return 0, -1
    reach = np.sqrt(reach2)
    return int(np.ceil(middle - reach)), int(np.floor(middle + reach))


@njit(cache=True, nogil=True)
def predict_sweep(
    matrices: Floats,
    first: float,
    step: float,
    s0: Floats,
    axis: Floats,
    limits: Floats,
    centring: NDArray[np.int64],
    polarization: Floats,
    geometry: Floats,
    frame: Floats,
    start: Indices,
    panels: Indices,
    capacity: int,
) -> tuple[int, Indices, Indices, Floats]:
    """Return the number of reflections that cross the sphere onto a panel, their hkl, panel, and columns (`N_COLUMNS`).

    ``matrices`` (n, 3, 3) are the crystal's, in the laboratory at angle 0, at the angles ``first``, ``first + step``, ...
    (radians),
    linear between; one is a crystal that keeps its orientation. ``limits`` are d_min, d_max (0: none), the first and the
    last angle, and by how much (radians) a crossing may be away from where the matrix in the middle has it. If there are more than
    ``capacity``, only that many are written.

    Longer than the house's 60 lines: one nest of loops over rows of indices.
    """
    d_min, d_max, begin, end, drift = limits[0], limits[1], limits[2], limits[3], limits[4]
    q_max2, q_min2 = 1.0 / (d_min * d_min), (1.0 / (d_max * d_max) if d_max > 0 else 0.0)
    a, work = np.empty((3, 3)), np.empty((3, 3))
    matrix_at(matrices, first, step, 0.5 * (begin + end), a)
    real = np.linalg.inv(a)
    tops = np.empty(3, dtype=np.int64)
    for i in range(3):
        tops[i] = int(np.sqrt(np.sum(real[i] * real[i]) * q_max2)) + 1
    hkl, panel = np.empty((capacity, 3), dtype=np.int32), np.empty(capacity, dtype=np.int32)
    columns = np.empty((capacity, N_COLUMNS))
    h = np.zeros(3, dtype=np.int64)
    count = 0
    for k in range(-tops[1], tops[1] + 1):
        for m in range(-tops[2], tops[2] + 1):
            low, high = _row_ends(a, k, m, q_max2)
            for i in range(low, high + 1):
                h[0], h[1], h[2] = i, k, m
                x = a[0, 0] * i + a[0, 1] * k + a[0, 2] * m
                y = a[1, 0] * i + a[1, 1] * k + a[1, 2] * m
                z = a[2, 0] * i + a[2, 1] * k + a[2, 2] * m
                length2 = x * x + y * y + z * z
                if length2 > q_max2 or length2 <= q_min2 or length2 < 1e-12 or _absent(centring, h):
                    continue
                leaves, enters, crosses = crossing(x, y, z, s0, axis)
                if not crosses and drift == 0.0:
                    continue
                for side in range(2):
                    rough = enters if side else leaves
                    phi = rough + 2.0 * np.pi * np.ceil((begin - drift - rough) / (2.0 * np.pi))
                    while phi < end + drift:
                        true, tx, ty, tz = settle(h, side, phi, matrices, first, step, s0, axis, work)
                        phi += 2.0 * np.pi
                        if not begin <= true < end:
                            continue
                        tx, ty, tz = turned(tx, ty, tz, axis, true)
                        tx, ty, tz = tx + s0[0], ty + s0[1], tz + s0[2]
                        p, fast, slow = find_panel(geometry, frame, start, panels, tx, ty, tz)
                        if p < 0:
                            continue
                        if count < capacity:
                            hkl[count, 0], hkl[count, 1], hkl[count, 2] = i, k, m
                            panel[count] = p
                            row = columns[count]
                            row[0], row[1], row[2], row[3] = fast, slow, true, 1.0 / np.sqrt(length2)
                            row[4], row[5] = zeta_of(tx, ty, tz, s0, axis)
                            row[6] = _polarization(polarization, tx, ty, tz)
                            row[7] = 1.0 if side else -1.0
                        count += 1
    return count, hkl, panel, columns


@njit(cache=True, nogil=True)
def predict_sweep_indices(
    matrices: Floats,
    first: float,
    step: float,
    s0: Floats,
    axis: Floats,
    hkl: Indices,
    near: Floats,
    panel: Indices,
    geometry: Floats,
    out: Floats,
) -> None:
    """Write fast, slow and φ (radians) of given indices on given panels (n,), at their crossings nearest to ``near`` (radians).

    NaN where an index does not cross the sphere or the ray misses the plane of the panel.
    """
    work = np.empty((3, 3))
    h = np.empty(3, dtype=np.int64)
    for row in range(hkl.shape[0]):
        out[row, 0] = out[row, 1] = out[row, 2] = np.nan
        h[0], h[1], h[2] = hkl[row, 0], hkl[row, 1], hkl[row, 2]
        best, bx, by, bz = np.nan, 0.0, 0.0, 0.0
        for side in range(2):
            phi, x, y, z = settle(h, side, near[row], matrices, first, step, s0, axis, work)
            if not np.isnan(phi) and (np.isnan(best) or abs(phi - near[row]) < abs(best - near[row])):
                best, bx, by, bz = phi, x, y, z
        if np.isnan(best):
            continue
        x, y, z = turned(bx, by, bz, axis, best)
        hit, fast, slow = ray_to_panel(geometry[panel[row]], x + s0[0], y + s0[1], z + s0[2])
        if hit:
            out[row, 0], out[row, 1], out[row, 2] = fast, slow, best
