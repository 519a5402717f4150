"""Mosaicity of a still by likelihood: domain size and spread from ΔΨ, the turns of its blocks from where its spots lie."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@njit(cache=True, nogil=True)
def fit_mosaicity(
    psi: Floats, d: Floats, extra: Floats, start: Floats, bounds: Floats, edge: float, prior_sigma: float, cycles: int
) -> Floats:
    """Return 1/D (1/Å) and η/2 (radians) of largest likelihood for the ΔΨ (radians) of spots of resolution ``d`` (Å).

    ΔΨ follows a flat distribution of half-width α = d/D + η/2 + ``extra`` with soft edges,
    ``p = sinh(2e) / (2α (cosh 2e + cosh(2eΔΨ/α)))`` for an ``edge`` of e, after the envelope of Sauter et al. (2014): a
    spot far outside costs no more than linearly. The logarithms of both are fitted by Fisher scoring, with a log-normal
    prior about ``start``, which decides what few spots leave open, within ``bounds`` (2, 2).
    """
    u = np.log(start)
    centre = u.copy()
    weight = 1.0 / (prior_sigma * prior_sigma)
    flat = 2.0 * np.cosh(2.0 * edge)
    for _ in range(cycles):
        shape, mosaic = np.exp(u[0]), np.exp(u[1])
        g0 = g1 = h00 = h01 = h11 = 0.0
        for i in range(psi.shape[0]):
            alpha = shape * d[i] + mosaic + extra[i]
            x = min(2.0 * edge * abs(psi[i]) / alpha, 300.0)
            up = np.exp(x)
            down = 1.0 / up
            force = x * (up - down) / (flat + up + down) - 1.0
            a0, a1 = shape * d[i] / alpha, mosaic / alpha
            g0 += force * a0
            g1 += force * a1
            h00 += 2.0 * a0 * a0
            h01 += 2.0 * a0 * a1
            h11 += 2.0 * a1 * a1
        g0 -= weight * (u[0] - centre[0])
        g1 -= weight * (u[1] - centre[1])
        h00 += weight
        h11 += weight
        determinant = h00 * h11 - h01 * h01
        step0 = (h11 * g0 - h01 * g1) / determinant
        step1 = (h00 * g1 - h01 * g0) / determinant
        largest = max(abs(step0), abs(step1))
        shrink = min(1.0, 1.0 / largest) if largest > 0.0 else 1.0
        u[0] = min(np.log(bounds[0, 1]), max(np.log(bounds[0, 0]), u[0] + shrink * step0))
        u[1] = min(np.log(bounds[1, 1]), max(np.log(bounds[1, 0]), u[1] + shrink * step1))
        if largest < 3e-3:
            break
    return np.exp(u)


@njit(cache=True, nogil=True)
def fit_turns(
    q: Floats, miss: Floats, start: float, dilation: float, noise: float, freedom: float, cycles: int
) -> tuple[Floats, float, float]:
    """Return the covariance (3, 3; radians²) of the turns of a crystal's blocks and the variances of the relative length of q
    and of what is left (1/Å²).

    A spot recorded at ``miss`` (n, 3; 1/Å) from its lattice point q comes from blocks turned by ω, of a cell smaller by δ or at a
    wavelength smaller by δ: miss = ω × q + δ q + noise, all Gaussian. Their covariances are of largest likelihood (expectation
    and maximisation); spots far out have the weights of Student's distribution of ``freedom`` degrees. ``start`` (radians²),
    ``dilation`` and ``noise`` (1/Å²) are first guesses.
    """
    n = q.shape[0]
    s = np.zeros((3, 3))
    for r in range(3):
        s[r, r] = start
    c, g = np.empty((3, 3)), np.empty((3, 3))
    qs, sum_, m = np.empty((3, 3)), np.empty((3, 3)), np.empty((3, 3))
    w, u = np.empty(3), np.empty(3)
    for _ in range(cycles):
        sum_[:] = 0.0
        m[:] = 0.0
        rest = 0.0
        longer = 0.0
        for i in range(n):
            x, y, z = q[i, 0], q[i, 1], q[i, 2]
            for r in range(3):  # rows of Q S with Q ω = ω × q
                qs[0, r] = s[1, r] * z - s[2, r] * y
                qs[1, r] = s[2, r] * x - s[0, r] * z
                qs[2, r] = s[0, r] * y - s[1, r] * x
            for r in range(3):
                c[r, 0] = qs[r, 1] * z - qs[r, 2] * y
                c[r, 1] = qs[r, 2] * x - qs[r, 0] * z
                c[r, 2] = qs[r, 0] * y - qs[r, 1] * x
                for t in range(3):
                    c[r, t] += dilation * q[i, r] * q[i, t]
                c[r, r] += noise
            _invert_symmetric(c, g)
            distance = 0.0
            for r in range(3):
                u[r] = g[r, 0] * miss[i, 0] + g[r, 1] * miss[i, 1] + g[r, 2] * miss[i, 2]
                distance += u[r] * miss[i, r]
            weight = (freedom + 3.0) / (freedom + distance)
            ex, ey, ez = y * u[2] - z * u[1], z * u[0] - x * u[2], x * u[1] - y * u[0]
            for r in range(3):
                w[r] = s[r, 0] * ex + s[r, 1] * ey + s[r, 2] * ez
            delta = dilation * (x * u[0] + y * u[1] + z * u[2])
            spread = _quadratic_form(g, q[i])
            longer += weight * delta * delta + dilation * (1.0 - dilation * spread)
            left = (miss[i, 0] - w[1] * z + w[2] * y - delta * x) ** 2 + (miss[i, 1] - w[2] * x + w[0] * z - delta * y) ** 2
            left += (miss[i, 2] - w[0] * y + w[1] * x - delta * z) ** 2
            rest += weight * left + noise * (3.0 - noise * (g[0, 0] + g[1, 1] + g[2, 2]))
            for r in range(3):
                for t in range(3):
                    sum_[r, t] += weight * w[r] * w[t]
            _add_projected(m, g, x, y, z)
        s = (sum_ - s @ m @ s) / n + s
        dilation = longer / n
        noise = rest / (3.0 * n)
    return s, dilation, noise


@njit(cache=True, nogil=True)
def _quadratic_form(g: Floats, q: Floats) -> float:
    """Return qᵀ g q."""
    total = 0.0
    for r in range(3):
        for t in range(3):
            total += q[r] * g[r, t] * q[t]
    return total


@njit(cache=True, nogil=True)
def _invert_symmetric(c: Floats, g: Floats) -> None:
    """Write the inverse of a symmetric 3 x 3 matrix into ``g``."""
    g[0, 0] = c[1, 1] * c[2, 2] - c[1, 2] * c[1, 2]
    g[0, 1] = c[0, 2] * c[1, 2] - c[0, 1] * c[2, 2]
    g[0, 2] = c[0, 1] * c[1, 2] - c[0, 2] * c[1, 1]
    g[1, 1] = c[0, 0] * c[2, 2] - c[0, 2] * c[0, 2]
    g[1, 2] = c[0, 1] * c[0, 2] - c[0, 0] * c[1, 2]
    g[2, 2] = c[0, 0] * c[1, 1] - c[0, 1] * c[0, 1]
    inverse = 1.0 / (c[0, 0] * g[0, 0] + c[0, 1] * g[0, 1] + c[0, 2] * g[0, 2])
    for r in range(3):
        for t in range(r, 3):
            g[r, t] *= inverse
            g[t, r] = g[r, t]


@njit(cache=True, nogil=True)
def _add_projected(m: Floats, g: Floats, x: float, y: float, z: float) -> None:
    """Add Qᵀ g Q to ``m``, with Q ω = ω × q for q = (x, y, z)."""
    for t in range(3):
        a, b, c = 0.0, 0.0, 0.0  # column t of Q, the cross product of the unit vector with q
        if t == 0:
            b, c = -z, y
        elif t == 1:
            a, c = z, -x
        else:
            a, b = -y, x
        u0 = g[0, 0] * a + g[0, 1] * b + g[0, 2] * c
        u1 = g[1, 0] * a + g[1, 1] * b + g[1, 2] * c
        u2 = g[2, 0] * a + g[2, 1] * b + g[2, 2] * c
        m[0, t] += y * u2 - z * u1
        m[1, t] += z * u0 - x * u2
        m[2, t] += x * u1 - y * u0
