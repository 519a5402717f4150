"""Where the reflections of a lattice are recorded, and how that changes with the lattice and with the panels' places."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.geometry import mean_path
from xfelproc.kernels.prediction import point_change

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]


@njit(cache=True, nogil=True)
def onto_sphere(q: Floats, beam: Floats, radius: float, blend: float, ray: Floats) -> float:
    """Write where the reflection of lattice point ``q`` goes, and how that changes with q; return ΔΨ (radians; NaN: nowhere).

    A point off the sphere is recorded because blocks of the crystal are turned (then it is turned about q × s0, at its |q|: an
    infinite ``blend``), or because it is extended (then it is met along s0 + q: 0), or at another wavelength of the beam. Of
    normal distributions of all three the mean is at α of the way from the second to the first,
    α = (τ - ν) g²/(1 + (τ + ν tan²θ) g²): g is the height (1/Å) of the point of the sphere over the beam, τ and ν (Å²) the
    variances of turns and of relative wavelengths by that of the extent. ``blend`` is τ - ν; the lesser of them is left out below
    the line. ``beam`` is the unit vector of travel.

    ``ray`` (17): unit vector u of the ray (0-2), e (3-5), tangent t (6-8), p (9-11), du = t (p·dq) + κ e (e·dq); κ (12); |q
    across the beam| (13) and q along (14), from which `psi_gradient` is; the angle from where an extended point is met to where a
    turned one is (15, its sine), and what u moves along t with β (16).
    """
    along = q[0] * beam[0] + q[1] * beam[1] + q[2] * beam[2]
    square = q[0] * q[0] + q[1] * q[1] + q[2] * q[2]
    cx, cy, cz = q[0] - along * beam[0], q[1] - along * beam[1], q[2] - along * beam[2]
    across = math.sqrt(cx * cx + cy * cy + cz * cz)
    a = 0.5 * square / radius
    b2 = square - a * a
    if across <= 0.0 or b2 <= 0.0:
        return math.nan
    b = math.sqrt(b2)
    cx /= across
    cy /= across
    cz /= across
    ray[3] = beam[1] * cz - beam[2] * cy
    ray[4] = beam[2] * cx - beam[0] * cz
    ray[5] = beam[0] * cy - beam[1] * cx
    norm = math.sqrt((radius + along) ** 2 + across * across)
    forward, side = (radius + along) / norm, across / norm
    ray[15] = (b * forward - (radius - a) * side) / radius
    part, slope = 1.0, 0.0
    if math.isinf(blend):
        forward, side = (radius - a) / radius, b / radius
    elif blend != 0.0:
        limit = 1.0 + (blend * b2 if blend > 0.0 else -blend * a * a)
        part, slope = blend * b2 / limit, b2 / (limit * limit)
        forward, side = forward - part * ray[15] * side, side + part * ray[15] * forward
        length = math.sqrt(forward * forward + side * side)
        forward /= length
        side /= length
    else:
        part, slope = 0.0, b2
    ray[16] = slope * ray[15]
    ray[6] = forward * cx - side * beam[0]
    ray[7] = forward * cy - side * beam[1]
    ray[8] = forward * cz - side * beam[2]
    pull, turned = (1.0 - part) / norm, part / (radius * b)
    for r in range(3):
        ray[9 + r] = pull * ray[6 + r] + turned * q[r]
    ray[12] = side / across
    ray[0] = forward * beam[0] + side * cx
    ray[1] = forward * beam[1] + side * cy
    ray[2] = forward * beam[2] + side * cz
    ray[13], ray[14] = across, along
    return math.atan2(across * a + along * b, across * b - along * a)


@njit(cache=True, nogil=True)
def psi_gradient(q: Floats, beam: Floats, radius: float, ray: Floats, out: Floats) -> None:
    """Write dΔΨ/dq (3) of the point that `onto_sphere` was given."""
    across, along = ray[13], ray[14]
    square = across * across + along * along
    a = 0.5 * square / radius
    b = math.sqrt(square - a * a)
    for r in range(3):
        c = (q[r] - along * beam[r]) / across
        out[r] = (-along * c + across * beam[r] + a / b * q[r]) / square


@njit(cache=True, nogil=True)
def onto_panel(g: Floats, ray: Floats, out: Floats) -> bool:
    """Write pixel coordinates of a ray on packed panel ``g`` and their derivatives; return whether it meets the panel's plane.

    ``out`` (8): fast, slow (0, 1), and their derivatives with respect to the ray's unit vector (2-7).
    """
    x, y, z = ray[0], ray[1], ray[2]
    along = g[6] * x + g[7] * y + g[8] * z
    if along * g[12] <= 0.0:
        return False
    scale = g[12] / along
    path, slope = mean_path(g[17], g[18], abs(along))
    if along < 0.0:
        slope = -slope
    for axis in range(2):
        f0, f1, f2 = g[3 * axis], g[3 * axis + 1], g[3 * axis + 2]
        f_u = f0 * x + f1 * y + f2 * z
        offset = f0 * g[9] + f1 * g[10] + f2 * g[11]
        pixel = 1.0 / g[13 + axis]
        out[axis] = (scale * f_u - offset + path * f_u) * pixel
        onto = (slope - scale / along) * f_u
        out[2 + 3 * axis] = ((scale + path) * f0 + onto * g[6]) * pixel
        out[3 + 3 * axis] = ((scale + path) * f1 + onto * g[7]) * pixel
        out[4 + 3 * axis] = ((scale + path) * f2 + onto * g[8]) * pixel
    return True


@njit(cache=True, nogil=True)
def local_rows(
    q: Floats,
    h: Ints,
    strain: Floats,
    n_strain: int,
    beam: Floats,
    radius: float,
    ray: Floats,
    spot: Floats,
    gradient: Floats,
    rows: Floats,
) -> None:
    """Write derivatives (3, 3 + strains) of fast, slow (px) and ΔΨ (radians) to the crystal's turn and strains."""
    psi_gradient(q, beam, radius, ray, gradient)
    k = ray[12]
    t0 = spot[2] * ray[6] + spot[3] * ray[7] + spot[4] * ray[8]
    t1 = spot[5] * ray[6] + spot[6] * ray[7] + spot[7] * ray[8]
    e0 = k * (spot[2] * ray[3] + spot[3] * ray[4] + spot[4] * ray[5])
    e1 = k * (spot[5] * ray[3] + spot[6] * ray[4] + spot[7] * ray[5])
    for j in range(3 + n_strain):
        x, y, z = point_change(j, q, h, strain)
        radial = ray[9] * x + ray[10] * y + ray[11] * z
        sideways = ray[3] * x + ray[4] * y + ray[5] * z
        rows[0, j] = t0 * radial + e0 * sideways
        rows[1, j] = t1 * radial + e1 * sideways
        rows[2, j] = gradient[0] * x + gradient[1] * y + gradient[2] * z


@njit(cache=True, nogil=True)
def group_rows(frame: Floats, g: Floats, ray: Floats, rows: Floats, column: int) -> None:
    """Write derivatives of fast, slow to the six moves of the panel's group (``frame``: axes as rows 0-8, centre 9-11)."""
    u, v, w = ray[0], ray[1], ray[2]
    along = g[6] * u + g[7] * v + g[8] * w
    scale = g[12] / along
    path, slope = mean_path(g[17], g[18], abs(along))
    if along < 0.0:
        slope = -slope
    x, y, z = scale * u - frame[9], scale * v - frame[10], scale * w - frame[11]
    for axis in range(2):
        f0, f1, f2 = g[3 * axis], g[3 * axis + 1], g[3 * axis + 2]
        f_u = f0 * u + f1 * v + f2 * w
        pixel = 1.0 / g[13 + axis]
        slip, lean = f_u / along, slope * f_u
        t0, t1, t2 = slip * g[6] - f0, slip * g[7] - f1, slip * g[8] - f2
        # turns move the point that is met, and lean the panel against the ray, which changes the parallax
        r0 = y * t2 - z * t1 + path * (f1 * w - f2 * v) + lean * (g[7] * w - g[8] * v)
        r1 = z * t0 - x * t2 + path * (f2 * u - f0 * w) + lean * (g[8] * u - g[6] * w)
        r2 = x * t1 - y * t0 + path * (f0 * v - f1 * u) + lean * (g[6] * v - g[7] * u)
        for i in range(3):
            a0, a1, a2 = frame[3 * i], frame[3 * i + 1], frame[3 * i + 2]
            rows[axis, column + i] = pixel * (a0 * t0 + a1 * t1 + a2 * t2)
            rows[axis, column + 3 + i] = pixel * (a0 * r0 + a1 * r1 + a2 * r2)
