"""Rays, pixels and panels: the scalar forms of `xfelproc.geometry.detector` for use inside kernels.

A detector is packed into one row a panel (`pack_panels`): fast axis (0-2), slow axis (3-5), normal (6-8), origin in mm
(9-11), normal · origin (12), pixel size fast and slow in mm (13, 14), pixels fast and slow (15, 16), μ in 1/mm (17) and
thickness in mm (18). The parallax is that of `xfelproc.geometry.detector`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
GRID_CELLS = 96


@njit(cache=True, nogil=True)
def pack_panels(d: Floats, pixel_sizes: Floats, image_sizes: NDArray[np.int64], sensors: Floats, shift: Floats) -> Floats:
    """Return the packed panels (panel, 19) of a detector moved by ``shift`` (mm, laboratory frame)."""
    n = d.shape[0]
    out = np.empty((n, 19))
    for p in range(n):
        g = out[p]
        for i in range(3):
            g[i] = d[p, i, 0]
            g[3 + i] = d[p, i, 1]
            g[9 + i] = d[p, i, 2] + shift[i]
        g[6] = g[1] * g[5] - g[2] * g[4]
        g[7] = g[2] * g[3] - g[0] * g[5]
        g[8] = g[0] * g[4] - g[1] * g[3]
        g[12] = g[6] * g[9] + g[7] * g[10] + g[8] * g[11]
        g[13] = pixel_sizes[p, 0]
        g[14] = pixel_sizes[p, 1]
        g[15] = image_sizes[p, 0]
        g[16] = image_sizes[p, 1]
        g[17] = sensors[p, 0]
        g[18] = sensors[p, 1]
    return out


@njit(cache=True, nogil=True)
def move_panels(start: Floats, move: Floats, pivot: Floats, out: Floats) -> None:
    """Write packed panels turned about ``pivot`` (mm) and then translated, as `Detector.moved` does.

    ``move`` is a translation (mm) and the x and y of a rotation vector (radians).
    """
    turn = np.eye(3)
    angle = np.sqrt(move[3] * move[3] + move[4] * move[4])
    if angle > 0.0:
        cross = np.zeros((3, 3))
        cross[0, 2], cross[1, 2], cross[2, 0], cross[2, 1] = move[4], -move[3], -move[4], move[3]
        for r in range(3):
            for c in range(3):
                square = 0.0
                for m in range(3):
                    square += cross[r, m] * cross[m, c]
                turn[r, c] += np.sin(angle) / angle * cross[r, c] + (1.0 - np.cos(angle)) / (angle * angle) * square
    for p in range(start.shape[0]):
        old, g = start[p], out[p]
        g[:] = old
        for r in range(3):
            for axis in range(3):
                g[3 * axis + r] = turn[r, 0] * old[3 * axis] + turn[r, 1] * old[3 * axis + 1] + turn[r, 2] * old[3 * axis + 2]
            g[9 + r] = pivot[r] + move[r]
            for c in range(3):
                g[9 + r] += turn[r, c] * (old[9 + c] - pivot[c])
        g[12] = g[6] * g[9] + g[7] * g[10] + g[8] * g[11]


@njit(cache=True, nogil=True)
def mean_path(mu: float, thickness: float, cosine: float) -> tuple[float, float]:
    """Return the mean absorption path in mm at a given cosine to the normal, and its derivative with respect to the cosine."""
    if mu <= 0.0 or thickness <= 0.0:
        return 0.0, 0.0
    depth = thickness / cosine
    absorbed = np.exp(-mu * depth)
    return 1.0 / mu - (depth + 1.0 / mu) * absorbed, -mu * depth * absorbed * depth / cosine


@njit(cache=True, nogil=True)
def ray_to_panel(g: Floats, x: float, y: float, z: float) -> tuple[bool, float, float]:
    """Return whether a ray (any length) meets the plane of packed panel ``g`` ahead, and the pixel coordinates that record it."""
    along = g[6] * x + g[7] * y + g[8] * z
    if along * g[12] <= 0.0:
        return False, 0.0, 0.0
    scale = g[12] / along
    px = scale * x - g[9]
    py = scale * y - g[10]
    pz = scale * z - g[11]
    u = g[0] * px + g[1] * py + g[2] * pz
    v = g[3] * px + g[4] * py + g[5] * pz
    if g[17] > 0.0 and g[18] > 0.0:
        norm = 1.0 / np.sqrt(x * x + y * y + z * z)
        path, _ = mean_path(g[17], g[18], abs(along) * norm)
        u += path * norm * (g[0] * x + g[1] * y + g[2] * z)
        v += path * norm * (g[3] * x + g[4] * y + g[5] * z)
    return True, u / g[13], v / g[14]


@njit(cache=True, nogil=True)
def pixel_to_ray(g: Floats, fast: float, slow: float) -> tuple[float, float, float]:
    """Return the unit vector of the ray that pixel coordinates of packed panel ``g`` record."""
    u0 = fast * g[13]
    v0 = slow * g[14]
    u, v = u0, v0
    x = y = z = 0.0
    sensor = g[17] > 0.0 and g[18] > 0.0
    for _ in range(5 if sensor else 1):
        x = g[0] * u + g[3] * v + g[9]
        y = g[1] * u + g[4] * v + g[10]
        z = g[2] * u + g[5] * v + g[11]
        norm = 1.0 / np.sqrt(x * x + y * y + z * z)
        x *= norm
        y *= norm
        z *= norm
        if sensor:
            path, _ = mean_path(g[17], g[18], abs(g[6] * x + g[7] * y + g[8] * z))
            u = u0 - path * (g[0] * x + g[1] * y + g[2] * z)
            v = v0 - path * (g[3] * x + g[4] * y + g[5] * z)
    return x, y, z


@njit(cache=True, nogil=True)
def spots_to_q(geometry: Floats, panel: NDArray[np.int32], fast: Floats, slow: Floats, s0: Floats, q: Floats) -> None:
    """Write the scattering vectors (n, 3) in 1/Å of pixel coordinates into ``q``."""
    radius = np.sqrt(s0[0] * s0[0] + s0[1] * s0[1] + s0[2] * s0[2])
    for i in range(panel.shape[0]):
        x, y, z = pixel_to_ray(geometry[panel[i]], fast[i], slow[i])
        q[i, 0] = radius * x - s0[0]
        q[i, 1] = radius * y - s0[1]
        q[i, 2] = radius * z - s0[2]


@njit(cache=True, nogil=True)
def transverse_axes(s0: Floats) -> tuple[Floats, Floats, Floats]:
    """Return unit vectors e1, e2 normal to the beam, and the unit vector of its travel."""
    beam = s0 / np.sqrt(np.sum(s0 * s0))
    pick = 0 if abs(beam[0]) < 0.7 else 1
    e1 = -beam * beam[pick]
    e1[pick] += 1.0
    e1 /= np.sqrt(np.sum(e1 * e1))
    e2 = np.array([beam[1] * e1[2] - beam[2] * e1[1], beam[2] * e1[0] - beam[0] * e1[2], beam[0] * e1[1] - beam[1] * e1[0]])
    return e1, e2, beam


@njit(cache=True, nogil=True)
def _stereographic(frame: Floats, x: float, y: float, z: float) -> tuple[float, float]:
    """Return the stereographic image of a ray about the beam (frame rows e1, e2, beam), bounded to ±20."""
    norm = np.sqrt(x * x + y * y + z * z)
    w = max(norm + frame[2, 0] * x + frame[2, 1] * y + frame[2, 2] * z, 1e-12 * norm)
    u = (frame[0, 0] * x + frame[0, 1] * y + frame[0, 2] * z) / w
    v = (frame[1, 0] * x + frame[1, 1] * y + frame[1, 2] * z) / w
    return min(20.0, max(-20.0, u)), min(20.0, max(-20.0, v))


@njit(cache=True, nogil=True)
def _panel_box(g: Floats, frame: Floats) -> tuple[float, float, float, float]:
    """Return the bounding box of a panel's stereographic image, with room for the parallax beyond its edges."""
    grow = 0.0
    if g[17] > 0.0 and g[18] > 0.0:
        grow = min(1.0 / g[17], 3.0 * g[18])
    width = g[13] * g[15]
    height = g[14] * g[16]
    box = (1e9, -1e9, 1e9, -1e9)
    for side in range(4):
        for step in range(17):
            t = step / 16.0
            u = -grow + t * (width + 2 * grow) if side < 2 else (-grow if side == 2 else width + grow)
            v = -grow + t * (height + 2 * grow) if side >= 2 else (-grow if side == 0 else height + grow)
            x = g[0] * u + g[3] * v + g[9]
            y = g[1] * u + g[4] * v + g[10]
            z = g[2] * u + g[5] * v + g[11]
            a, b = _stereographic(frame, x, y, z)
            box = (min(box[0], a), max(box[1], a), min(box[2], b), max(box[3], b))
    hit, fast, slow = ray_to_panel(g, -frame[2, 0], -frame[2, 1], -frame[2, 2])
    if hit and fast >= -1 and slow >= -1 and fast <= g[15] + 1 and slow <= g[16] + 1:
        return -20.0, 20.0, -20.0, 20.0  # the panel holds the pole of the projection: its image has no bounds
    return box


@njit(cache=True, nogil=True)
def panel_grid(geometry: Floats, s0: Floats) -> tuple[Floats, NDArray[np.int32], NDArray[np.int32]]:
    """Return a lookup of the panels that a ray may meet: frame (4, 3), cell starts and panel lists.

    The rays are mapped stereographically about the beam on a grid of cells; each cell lists the panels whose bounding boxes
    touch it. The last row of the frame holds the grid's lower corner and its cells per unit.
    """
    n = geometry.shape[0]
    e1, e2, beam = transverse_axes(s0)
    frame = np.empty((4, 3))
    frame[0], frame[1], frame[2] = e1, e2, beam
    boxes = np.empty((n, 4))
    for p in range(n):
        boxes[p, 0], boxes[p, 1], boxes[p, 2], boxes[p, 3] = _panel_box(geometry[p], frame)
    low_u, low_v = np.min(boxes[:, 0]), np.min(boxes[:, 2])
    extent = max(np.max(boxes[:, 1]) - low_u, np.max(boxes[:, 3]) - low_v, 1e-9)
    scale = (GRID_CELLS - 2) / extent
    frame[3, 0], frame[3, 1], frame[3, 2] = low_u - 1.0 / scale, low_v - 1.0 / scale, scale
    start = np.zeros(GRID_CELLS * GRID_CELLS + 1, dtype=np.int32)
    for p in range(n):  # boxes to ranges of cells, one cell wider for the bow between the sampled points
        for axis in range(2):
            low = np.floor((boxes[p, 2 * axis] - frame[3, axis]) * scale) - 1
            high = np.floor((boxes[p, 2 * axis + 1] - frame[3, axis]) * scale) + 1
            boxes[p, 2 * axis] = max(0.0, low)
            boxes[p, 2 * axis + 1] = min(GRID_CELLS - 1.0, high)
    for p in range(n):
        for i in range(int(boxes[p, 0]), int(boxes[p, 1]) + 1):
            for j in range(int(boxes[p, 2]), int(boxes[p, 3]) + 1):
                start[i * GRID_CELLS + j + 1] += 1
    for i in range(GRID_CELLS * GRID_CELLS):
        start[i + 1] += start[i]
    fill = start[:-1].copy()
    panels = np.empty(start[-1], dtype=np.int32)
    for p in range(n):
        for i in range(int(boxes[p, 0]), int(boxes[p, 1]) + 1):
            for j in range(int(boxes[p, 2]), int(boxes[p, 3]) + 1):
                cell = i * GRID_CELLS + j
                panels[fill[cell]] = p
                fill[cell] += 1
    return frame, start, panels


@njit(cache=True, nogil=True)
def find_panel(
    geometry: Floats, frame: Floats, start: NDArray[np.int32], panels: NDArray[np.int32], x: float, y: float, z: float
) -> tuple[int, float, float]:
    """Return the first panel whose pixels record a ray (-1: none), and the pixel coordinates."""
    u, v = _stereographic(frame, x, y, z)
    i = int(np.floor((u - frame[3, 0]) * frame[3, 2]))
    j = int(np.floor((v - frame[3, 1]) * frame[3, 2]))
    if i < 0 or j < 0 or i >= GRID_CELLS or j >= GRID_CELLS:
        return -1, 0.0, 0.0
    cell = i * GRID_CELLS + j
    for k in range(start[cell], start[cell + 1]):
        g = geometry[panels[k]]
        hit, fast, slow = ray_to_panel(g, x, y, z)
        if hit and fast >= 0.0 and slow >= 0.0 and fast < g[15] and slow < g[16]:
            return panels[k], fast, slow
    return -1, 0.0, 0.0


@njit(cache=True, nogil=True)
def displacement(
    n: Any, q: Any, beam: Any, cosine: float, radius: float, excitation: float, spread: Floats
) -> tuple[float, float, float]:
    """Return the vector that takes a point, for each unit of its excitation error, to where it diffracts.

    A reciprocal-lattice point is a Gaussian: it spreads isotropically by the size of the domains, and as ω × q by their turns
    ω; the wave number spreads along the ``beam``. What diffracts is the part of it on the Ewald sphere (normal ``n``, cos 2θ
    ``cosine``, ``radius``), and the mean of that is -ε times the vector returned, C n / (n·C n) for a covariance C. With the
    isotropic part alone that is n: the point moves the shortest way, and the ray is along s0 + q. So it does with what of its
    ``excitation`` error (1/Å) is beyond three standard deviations, where the Gaussian has nothing to say.

    ``spread`` (8): the isotropic variance (1/Å²), the variance of the relative wave number, and the covariance of the turns in
    radians² (xx, xy, xz, yy, yz, zz).
    """
    back = (cosine - 1.0) * spread[1] * radius * radius
    vx = spread[0] * n[0] + back * beam[0]
    vy = spread[0] * n[1] + back * beam[1]
    vz = spread[0] * n[2] + back * beam[2]
    variance = spread[0] + back * (cosine - 1.0)
    if spread[2] + spread[5] + spread[7] > 0.0:
        mx = q[1] * n[2] - q[2] * n[1]  # a turn ω changes the excitation error by ω · (q × n)
        my = q[2] * n[0] - q[0] * n[2]
        mz = q[0] * n[1] - q[1] * n[0]
        kx = spread[2] * mx + spread[3] * my + spread[4] * mz
        ky = spread[3] * mx + spread[5] * my + spread[6] * mz
        kz = spread[4] * mx + spread[6] * my + spread[7] * mz
        vx += ky * q[2] - kz * q[1]
        vy += kz * q[0] - kx * q[2]
        vz += kx * q[1] - ky * q[0]
        variance += kx * mx + ky * my + kz * mz
    beyond = 0.0
    if excitation * excitation > 9.0 * variance:
        beyond = 1.0 - 3.0 * np.sqrt(variance) / abs(excitation)
    within = (1.0 - beyond) / variance
    return within * vx + beyond * n[0], within * vy + beyond * n[1], within * vz + beyond * n[2]
