"""How the calculated position of a reflection of a sweep, (fast, slow, φ), responds to the models.

With r the point in the laboratory at φ, s1 = s0 + r, the axis m and v = s0 · (m × r): a change dq of the point at angle 0, ds of
s0 and a turn ω of the axis keep the point on the sphere if ``v dφ = -(s1 · dr + r · ds)``, where ``dr = R dq + ω × r - R (ω × q)``;
the ray then changes by ``ds1 = ds + dr + (m × r) dφ``. A panel's point X = t s1 moves by ``t (ds1 - s1 (n · ds1) / (n · s1))``;
if the panel's plane moves by δ at X, the position on it changes by that of ``s1 (n · δ) / (n · s1) - δ``. The parallax is taken as
constant.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.geometry import ray_to_panel
from xfelproc.kernels.rotation import nearest_turn, settle, turned

Floats = NDArray[np.float64]
Indices = NDArray[np.int32]

POINT, BEAM, AXIS, SHIFT, TURN = 0, 3, 6, 9, 12
"""First columns of the responses to the point (1/Å, laboratory at angle 0), s0 (1/Å), a turn of the axis (radians), and a shift
(mm) and a turn (radians, about the pivot) of the detector; three columns each."""


@njit(cache=True, nogil=True)
def _cross(a: Floats, b: Floats, out: Floats) -> None:
    out[0] = a[1] * b[2] - a[2] * b[1]
    out[1] = a[2] * b[0] - a[0] * b[2]
    out[2] = a[0] * b[1] - a[1] * b[0]


@njit(cache=True, nogil=True)
def _on_panel(g: Floats, s1: Floats, change: Floats, row: Floats, column: int, along: float, reach: float) -> None:
    """Write the change of (fast, slow) in px for a change of the ray, of which ``reach`` times is a change in mm."""
    lift = (g[6] * change[0] + g[7] * change[1] + g[8] * change[2]) / along
    du = dv = 0.0
    for i in range(3):
        moved = reach * (change[i] - s1[i] * lift)
        du += g[i] * moved
        dv += g[3 + i] * moved
    row[0, column] = du / g[13]
    row[1, column] = dv / g[14]


@njit(cache=True, nogil=True)
def responses(
    matrices: Floats,
    first: float,
    step: float,
    s0: Floats,
    axis: Floats,
    pivot: Floats,
    hkl: Indices,
    near: Floats,
    panel: Indices,
    geometry: Floats,
    calculated: Floats,
    rows: Floats,
) -> None:
    """Write fast, slow (px) and φ (radians) of the crossings nearest to ``near`` and, (n, 3, 15), their derivatives.

    ``pivot`` (mm) is where the detector turns. NaN where an index does not cross or its ray misses the panel. The other
    arguments are those of `kernels.rotation.predict_sweep_indices`.
    """
    work = np.empty((3, 3))
    h = np.empty(3, dtype=np.int64)
    r, s1, spin, dr, ds1, unit, point = (np.empty(3), np.empty(3), np.empty(3), np.empty(3), np.empty(3), np.empty(3), np.empty(3))
    for n in range(hkl.shape[0]):
        calculated[n, :] = np.nan
        rows[n, :, :] = 0.0
        h[0], h[1], h[2] = hkl[n, 0], hkl[n, 1], hkl[n, 2]
        phi, x, y, z = settle(h, 0, near[n], matrices, first, step, s0, axis, work)
        other, ox, oy, oz = settle(h, 1, near[n], matrices, first, step, s0, axis, work)
        if np.isnan(phi) or (not np.isnan(other) and abs(other - near[n]) < abs(phi - near[n])):
            phi, x, y, z = other, ox, oy, oz
        if np.isnan(phi):
            continue
        phi = nearest_turn(phi, near[n])
        r[0], r[1], r[2] = turned(x, y, z, axis, phi)
        s1[:] = s0 + r
        g = geometry[panel[n]]
        hit, fast, slow = ray_to_panel(g, s1[0], s1[1], s1[2])
        if not hit:
            continue
        calculated[n, 0], calculated[n, 1], calculated[n, 2] = fast, slow, phi
        _cross(axis, r, spin)
        volume = s0[0] * spin[0] + s0[1] * spin[1] + s0[2] * spin[2]
        along = g[6] * s1[0] + g[7] * s1[1] + g[8] * s1[2]
        reach = g[12] / along
        for i in range(3):
            unit[:] = 0.0
            unit[i] = 1.0
            for kind in range(3):
                dr[:] = 0.0
                ds1[:] = 0.0
                change = 0.0
                if kind == 0:
                    dr[0], dr[1], dr[2] = turned(unit[0], unit[1], unit[2], axis, phi)
                elif kind == 1:
                    ds1[i] = 1.0
                    change = r[i]
                else:
                    point[0], point[1], point[2] = x, y, z
                    _cross(unit, point, ds1)
                    point[0], point[1], point[2] = turned(ds1[0], ds1[1], ds1[2], axis, phi)
                    _cross(unit, r, dr)
                    dr -= point
                    ds1[:] = 0.0
                change += s1[0] * dr[0] + s1[1] * dr[1] + s1[2] * dr[2]
                dphi = -change / volume
                for j in range(3):
                    ds1[j] += dr[j] + spin[j] * dphi
                _on_panel(g, s1, ds1, rows[n], 3 * kind + i, along, reach)
                rows[n, 2, 3 * kind + i] = dphi
            for kind in range(2):
                point[:] = unit
                if kind == 1:
                    for j in range(3):
                        dr[j] = reach * s1[j] - pivot[j]
                    _cross(unit, dr, point)
                for j in range(3):
                    point[j] = -point[j]
                _on_panel(g, s1, point, rows[n], SHIFT + 3 * kind + i, along, 1.0)
