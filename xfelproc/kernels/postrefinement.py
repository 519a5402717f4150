"""Lattice by lattice: the partiality model, its derivatives, refinement against a reference, and sums over unique reflections.

The parameters of a lattice are log scale, B (Å²), rotations about x and y of the laboratory (radians), two log widths, and
relative changes of the reciprocal cell. All arrays of observations are those of a block, ``starts`` (m + 1,) bounds its lattices.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xfelproc.kernels.error_model import observation_variance
from xfelproc.kernels.small_matrices import solve_spd

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ints = NDArray[np.int64]
Rows = NDArray[np.int32]
Bools = NDArray[np.bool_]

N_FIXED = 6
GAUSSIAN, GIVEN, FULL = 0, 1, 2
"""Partiality: a Gaussian of the excitation error; as integration gave it; 1."""
IMPOSSIBLE = 40.0
"""Times the mean of its resolution that no intensity can be."""


@njit(cache=True, nogil=True)
def excitation_derivatives(a: Floats, wavelength: float, h: float, k: float, m: float, shapes: Floats, out: Floats) -> None:
    """Write the derivatives of an excitation error with the rotations about x and y and with each strain to ``out`` (2 + n,).

    With ε = |s0 + q| - 1/λ, n the direction of s0 + q, and s0 along -z: a rotation r moves q by r × q and ε by r · (q × n), where
    q × n = q × s0 / |s0 + q|; a strain of the shape S moves q by A S h.
    """
    radius = 1.0 / wavelength
    qx = a[0, 0] * h + a[0, 1] * k + a[0, 2] * m
    qy = a[1, 0] * h + a[1, 1] * k + a[1, 2] * m
    qz = a[2, 0] * h + a[2, 1] * k + a[2, 2] * m
    zz = qz - radius
    length = math.sqrt(qx * qx + qy * qy + zz * zz)
    out[0] = -radius * qy / length
    out[1] = radius * qx / length
    for s in range(shapes.shape[0]):
        u = shapes[s, 0, 0] * h + shapes[s, 0, 1] * k + shapes[s, 0, 2] * m
        v = shapes[s, 1, 0] * h + shapes[s, 1, 1] * k + shapes[s, 1, 2] * m
        w = shapes[s, 2, 0] * h + shapes[s, 2, 1] * k + shapes[s, 2, 2] * m
        x = a[0, 0] * u + a[0, 1] * v + a[0, 2] * w
        y = a[1, 0] * u + a[1, 1] * v + a[1, 2] * w
        z = a[2, 0] * u + a[2, 1] * v + a[2, 2] * w
        out[2 + s] = (qx * x + qy * y + zz * z) / length


@njit(cache=True, nogil=True)
def gaussian_partiality(excitation: float, w0: float, w1: float, inverse_d2: float) -> tuple[float, float, float, float]:
    """Return exp(-ε²/2w²), w² = w0² + w1²/d², and its derivatives with ε, log w0 and log w1."""
    a, b = w0 * w0, w1 * w1 * inverse_d2
    u = 1.0 / (a + b)
    p = math.exp(-0.5 * excitation * excitation * u)
    steep = p * excitation * excitation * u * u
    return p, -p * excitation * u, steep * a, steep * b


@njit(cache=True, nogil=True)
def _partiality(kind: int, given: float, excitation: float, w0: float, w1: float, inverse_d2: float) -> float:
    if kind == GAUSSIAN:
        return math.exp(-0.5 * excitation * excitation / (w0 * w0 + w1 * w1 * inverse_d2))
    return given if kind == GIVEN else 1.0


@njit(cache=True, nogil=True)
def block_derivatives(starts: Ints, hkl: NDArray[np.int16], a: Floats, wavelength: Floats, shapes: Floats) -> Singles:
    """Return `excitation_derivatives` of all observations, (n, 2 + strains); 0 for lattices without orientation."""
    out = np.zeros((hkl.shape[0], 2 + shapes.shape[0]), dtype=np.float32)
    row = np.empty(2 + shapes.shape[0])
    for j in range(starts.shape[0] - 1):
        if math.isnan(a[j, 0, 0]):
            continue
        for i in range(starts[j], starts[j + 1]):
            excitation_derivatives(a[j], wavelength[j], hkl[i, 0], hkl[i, 1], hkl[i, 2], shapes, row)
            for s in range(row.shape[0]):
                out[i, s] = row[s]
    return out


@njit(cache=True, nogil=True)
def block_factors(
    starts: Ints,
    excitation: Singles,
    derivatives: Singles,
    given: Singles,
    group: Rows,
    inverse_d2: Floats,
    parameters: Floats,
    kind: int,
) -> tuple[Singles, Singles]:
    """Return G exp(-B/2d²) and the partiality of each observation under the parameters (m, 6 + strains)."""
    full = np.empty(excitation.shape[0], dtype=np.float32)
    partiality = np.empty(excitation.shape[0], dtype=np.float32)
    for j in range(starts.shape[0] - 1):
        p = parameters[j]
        w0, w1 = math.exp(p[4]), math.exp(p[5])
        for i in range(starts[j], starts[j + 1]):
            s2 = inverse_d2[group[i]]
            e = excitation[i] + p[2] * derivatives[i, 0] + p[3] * derivatives[i, 1]
            for s in range(2, derivatives.shape[1]):
                e += p[N_FIXED + s - 2] * derivatives[i, s]
            full[i] = math.exp(p[0] - 0.5 * p[1] * s2)
            partiality[i] = _partiality(kind, given[i], e, w0, w1, s2)
    return full, partiality


@njit(cache=True, nogil=True)
def own_variance(
    intensity: float, fixed: float, gain: float, full: float, partiality: float, expected: float, limit: float, errors: Floats
) -> float:
    """Return the variance of an observation by which it is merged, infinite for one that cannot be true.

    ``errors`` are the terms of `xfelproc.kernels.error_model`. ``expected`` is the full intensity expected.
    ``limit`` is the square of the number of standard deviations beyond which one is an outlier; where it is negative the
    intensity was never measured, and an outlier is what Wilson's law makes impossible.
    """
    mean = full * partiality * max(expected, 0.0)
    variance = observation_variance(fixed, gain, full, partiality, expected, 1.0, errors)
    if not variance > 0.0:
        return math.inf
    if limit >= 0.0:
        return math.inf if (intensity - mean) ** 2 > limit * variance else variance
    return math.inf if intensity > IMPOSSIBLE * mean + math.sqrt(-limit * variance) else variance


@njit(cache=True, nogil=True)
def add_block(
    starts: Ints,
    group: Rows,
    intensity: Singles,
    fixed: Singles,
    gain: Singles,
    full: Singles,
    partiality: Singles,
    expected: Floats,
    limit: Floats,
    column: NDArray[np.uint8],
    used: Bools,
    errors: Floats,
    min_partiality: float,
    weight: Floats,
    weighted: Floats,
    squared: Floats,
    count: Ints,
    merged: Bools,
) -> None:
    """Add Σw and ΣwJ by unique reflection and ``column`` (n,), ΣwJ² and the number by unique reflection; J = I/k, w = k²/σ².

    ``merged`` (n,) becomes true for the observations that were added.
    """
    for j in range(starts.shape[0] - 1):
        if not used[j]:
            continue
        for i in range(starts[j], starts[j + 1]):
            if partiality[i] < min_partiality:
                continue
            g, c = group[i], column[i]
            v = own_variance(intensity[i], fixed[i], gain[i], full[i], partiality[i], expected[g], limit[g], errors)
            if math.isinf(v):
                continue
            k = full[i] * partiality[i]
            weight[g, c] += k * k / v
            weighted[g, c] += k * intensity[i] / v
            squared[g] += intensity[i] * intensity[i] / v
            count[g, c] += 1
            merged[i] = True


@njit(cache=True, nogil=True)
def others(
    intensity: Singles,
    fixed: Singles,
    gain: Singles,
    full: Singles,
    partiality: Singles,
    group: Rows,
    expected: Floats,
    limit: Floats,
    errors: Floats,
    min_partiality: float,
    used: bool,
    mean: Floats,
    weight: Floats,
    rest_mean: Floats,
    rest_weight: Floats,
) -> None:
    """Write mean and weight of each reflection without the lattice's own observations of it to ``rest_mean`` and ``rest_weight``.

    All observations are of one lattice; one that sees a reflection twice takes one observation out at a time.
    """
    for i in range(intensity.shape[0]):
        g = group[i]
        w, wj = weight[g], weight[g] * mean[g]
        if used and partiality[i] >= min_partiality:
            v = own_variance(intensity[i], fixed[i], gain[i], full[i], partiality[i], expected[g], limit[g], errors)
            if not math.isinf(v):
                k = full[i] * partiality[i]
                w -= k * k / v
                wj -= k * intensity[i] / v
        # what rounding leaves of a reflection's only observation is nothing
        rest_weight[i] = w if w > 1e-9 * weight[g] else 0.0
        rest_mean[i] = wj / w if w > 1e-9 * weight[g] else 0.0


@njit(cache=True, nogil=True)
def lattice_variances(
    fixed: Singles,
    gain: Singles,
    full: Singles,
    partiality: Singles,
    rest_mean: Floats,
    rest_weight: Floats,
    errors: Floats,
    out: Floats,
) -> None:
    """Write the variance of I - k J of each observation to ``out``, infinite where nothing is there to compare to."""
    for i in range(fixed.shape[0]):
        if rest_weight[i] <= 0.0:
            out[i] = math.inf
            continue
        k = full[i] * partiality[i]
        own = observation_variance(fixed[i], gain[i], full[i], partiality[i], rest_mean[i], 1.0, errors)
        out[i] = own + k * k / rest_weight[i]


@njit(cache=True, nogil=True)
def lattice_target(
    intensity: Singles,
    excitation: Singles,
    derivatives: Singles,
    given: Singles,
    inverse_d2: Singles,
    rest_mean: Floats,
    variance: Floats,
    p: Floats,
    prior: Floats,
    precision: Floats,
    kind: int,
    robust: float,
    normal: Floats,
    right: Floats,
    with_derivatives: bool,
) -> float:
    """Return Σ ½ c² log(1 + z²/c²) + ½ Σ precision (p - prior)²; write the normal equations for a step if asked for.

    z = (I - k J) / σ, c = ``robust`` (Cauchy; Triggs et al. 2000 for the weight 1 / (1 + z²/c²)). ``p``, ``prior`` and
    ``precision`` (6 + strains,) are the parameters, what they are restrained to, and the inverse variances of that.
    """
    n = p.shape[0]
    total = 0.0
    for u in range(n):
        total += 0.5 * precision[u] * (p[u] - prior[u]) ** 2
    if with_derivatives:
        for u in range(n):
            right[u] = precision[u] * (prior[u] - p[u])
            for v in range(n):
                normal[u, v] = 0.0
            normal[u, u] = precision[u]
    w0, w1 = math.exp(p[4]), math.exp(p[5])
    d = np.zeros(n)
    c2 = robust * robust
    for i in range(intensity.shape[0]):
        if math.isinf(variance[i]):
            continue
        s2 = inverse_d2[i]
        e = excitation[i] + p[2] * derivatives[i, 0] + p[3] * derivatives[i, 1]
        for s in range(N_FIXED, n):
            e += p[s] * derivatives[i, s - 4]
        full = math.exp(p[0] - 0.5 * p[1] * s2)
        part, with_e, with_w0, with_w1 = 1.0, 0.0, 0.0, 0.0
        if kind == GAUSSIAN:
            part, with_e, with_w0, with_w1 = gaussian_partiality(e, w0, w1, s2)
        elif kind == GIVEN:
            part = given[i]
        base = full * rest_mean[i]
        y = intensity[i] - base * part
        z2 = y * y / variance[i]
        total += 0.5 * c2 * math.log1p(z2 / c2)
        if not with_derivatives:
            continue
        weight = 1.0 / (variance[i] * (1.0 + z2 / c2))
        d[0] = base * part
        d[1] = -0.5 * s2 * base * part
        d[2] = base * with_e * derivatives[i, 0]
        d[3] = base * with_e * derivatives[i, 1]
        d[4] = base * with_w0
        d[5] = base * with_w1
        for s in range(N_FIXED, n):
            d[s] = base * with_e * derivatives[i, s - 4]
        for u in range(n):
            right[u] += weight * d[u] * y
            for v in range(u + 1):
                normal[u, v] += weight * d[u] * d[v]
    if with_derivatives:
        for u in range(n):
            for v in range(u):
                normal[v, u] = normal[u, v]
    return total


@njit(cache=True, nogil=True)
def _step(normal: Floats, right: Floats, free: Bools, damping: float, step: Floats) -> bool:
    """Write the damped step of the free parameters to ``step``; return whether there is one."""
    n = right.shape[0]
    matrix = np.zeros((n, n))
    vector = np.zeros(n)
    for u in range(n):
        if not free[u]:
            matrix[u, u] = 1.0
            continue
        vector[u] = right[u]
        for v in range(n):
            if free[v]:
                matrix[u, v] = normal[u, v]
        matrix[u, u] = normal[u, u] * (1.0 + damping)
    if not solve_spd(matrix, vector):
        return False
    for u in range(n):
        step[u] = vector[u]
    return True


@njit(cache=True, nogil=True)
def refine_lattice(
    intensity: Singles,
    fixed: Singles,
    gain: Singles,
    excitation: Singles,
    derivatives: Singles,
    given: Singles,
    inverse_d2: Singles,
    rest_mean: Floats,
    rest_weight: Floats,
    parameters: Floats,
    prior: Floats,
    precision: Floats,
    free: Bools,
    errors: Floats,
    kind: int,
    robust: float,
    rounds: int,
) -> int:
    """Refine the parameters of one lattice in place (Levenberg-Marquardt); return the number of steps that were taken.

    The variances are those of the model before each step, so that none is gained by expecting more noise; a step that makes the
    target worse is not taken.
    """
    n, m = parameters.shape[0], intensity.shape[0]
    normal, right, step = np.zeros((n, n)), np.zeros(n), np.zeros(n)
    variance = np.empty(m)
    full, part = np.empty(m, dtype=np.float32), np.empty(m, dtype=np.float32)
    row = np.zeros((1, n))
    bounds = np.array([0, m])
    group = np.arange(m).astype(np.int32)
    s2 = inverse_d2.astype(np.float64)
    damping, taken = 1e-3, 0
    for _ in range(rounds):
        row[0] = parameters
        full, part = block_factors(bounds, excitation, derivatives, given, group, s2, row, kind)
        lattice_variances(fixed, gain, full, part, rest_mean, rest_weight, errors, variance)
        before = lattice_target(
            intensity,
            excitation,
            derivatives,
            given,
            inverse_d2,
            rest_mean,
            variance,
            parameters,
            prior,
            precision,
            kind,
            robust,
            normal,
            right,
            True,
        )
        better = False
        for _trial in range(6):
            if not _step(normal, right, free, damping, step):
                break
            trial = parameters + step
            after = lattice_target(
                intensity,
                excitation,
                derivatives,
                given,
                inverse_d2,
                rest_mean,
                variance,
                trial,
                prior,
                precision,
                kind,
                robust,
                normal,
                right,
                False,
            )
            if after < before:
                better = True
                break
            damping *= 10.0
        if not better:
            break
        parameters[:] = trial
        taken += 1
        damping = max(0.1 * damping, 1e-6)
        if before - after < 1e-3:
            break
    return taken


@njit(cache=True, nogil=True)
def compare_lattice(
    intensity: Singles,
    full: Singles,
    partiality: Singles,
    rest_mean: Floats,
    rest_weight: Floats,
    variance: Floats,
    typical: Floats,
    min_partiality: float,
) -> tuple[float, int]:
    """Return the correlation of a lattice to the mean of the others (NaN: fewer than 3), and the number of observations compared.

    Weighted, of x = asinh(I / k t) and y = asinh(J / t) where t is the ``typical`` intensity of the resolution: the fall with
    resolution does not correlate, and no outlier rules.
    """
    w = x = y = xx = xy = yy = 0.0
    n = 0
    for i in range(intensity.shape[0]):
        if math.isinf(variance[i]) or partiality[i] < min_partiality:
            continue
        k, t = full[i] * partiality[i], typical[i]
        a, b = math.asinh(intensity[i] / (k * t)), math.asinh(rest_mean[i] / t)
        weight = 1.0 / (variance[i] / (k * k * t * t) + 0.01)
        w, x, y = w + weight, x + weight * a, y + weight * b
        xx, xy, yy = xx + weight * a * a, xy + weight * a * b, yy + weight * b * b
        n += 1
    if n < 3:
        return math.nan, n
    spread = (xx / w - (x / w) ** 2) * (yy / w - (y / w) ** 2)
    return (xy / w - x * y / (w * w)) / math.sqrt(spread) if spread > 0.0 else math.nan, n


@njit(cache=True, nogil=True)
def refine_block(
    starts: Ints,
    group: Rows,
    intensity: Singles,
    fixed: Singles,
    gain: Singles,
    excitation: Singles,
    derivatives: Singles,
    given: Singles,
    used: Bools,
    inverse_d2: Floats,
    mean: Floats,
    weight: Floats,
    expected: Floats,
    limit: Floats,
    typical: Floats,
    leave_out: bool,
    parameters: Floats,
    prior: Floats,
    precision: Floats,
    free: Bools,
    errors: Floats,
    last_errors: Floats,
    min_partiality: float,
    kind: int,
    robust: float,
    rounds: int,
) -> tuple[Floats, Floats, Rows]:
    """Return refined parameters (m, 6 + strains), the correlation of each lattice, and the number of observations compared.

    ``mean`` and ``weight`` are the reference, by unique reflection; ``expected``, ``limit`` and ``last_errors`` are what its
    weights were formed with; with ``leave_out`` the parameters given are those that the lattices had in it, and each lattice's
    own part is taken out. ``typical`` is the mean intensity at the resolution of each unique reflection.
    """
    m = starts.shape[0] - 1
    out = parameters.copy()
    cc, n_used = np.full(m, np.nan), np.zeros(m, dtype=np.int32)
    bounds = np.zeros(2, dtype=np.int64)
    for j in range(m):
        rows = slice(starts[j], starts[j + 1])
        size = starts[j + 1] - starts[j]
        if size == 0:
            continue
        bounds[1] = size
        own = group[rows]
        s2, level = np.empty(size, dtype=np.float32), np.empty(size)
        for i in range(size):
            s2[i], level[i] = inverse_d2[own[i]], typical[own[i]]
        full, part = block_factors(
            bounds, excitation[rows], derivatives[rows], given[rows], own, inverse_d2, parameters[j : j + 1], kind
        )
        rest_mean, rest_weight, variance = np.empty(size), np.empty(size), np.empty(size)
        others(
            intensity[rows],
            fixed[rows],
            gain[rows],
            full,
            part,
            own,
            expected,
            limit,
            last_errors,
            min_partiality,
            leave_out and used[j],
            mean,
            weight,
            rest_mean,
            rest_weight,
        )
        refine_lattice(
            intensity[rows],
            fixed[rows],
            gain[rows],
            excitation[rows],
            derivatives[rows],
            given[rows],
            s2,
            rest_mean,
            rest_weight,
            out[j],
            prior[j],
            precision,
            free,
            errors,
            kind,
            robust,
            rounds,
        )
        full, part = block_factors(bounds, excitation[rows], derivatives[rows], given[rows], own, inverse_d2, out[j : j + 1], kind)
        lattice_variances(fixed[rows], gain[rows], full, part, rest_mean, rest_weight, errors, variance)
        cc[j], n_used[j] = compare_lattice(intensity[rows], full, part, rest_mean, rest_weight, variance, level, min_partiality)
    return out, cc, n_used
