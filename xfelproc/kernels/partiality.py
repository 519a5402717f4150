"""Partiality of stills: profiles in the excitation error, their derivatives, and the factors of observations of a block.

With the width w² = w0² + (w1 / d)² + (1.2 · ½ Δ)² of a lattice, where Δ = b λ / 2d² is how far the sphere moves between the ends of
the bandwidth b (relative, FWHM), the profiles are functions of u = ε / w:

* Gaussian: exp(-u² / 2);
* Lorentzian: 1 / (1 + 2u²), the sphere of Sauter et al. (2014), Acta Cryst. D70, 3299, and Uervirojnangkoorn et al. (2015), eLife
  4, e05421, of radius w;
* overlap: of a ball of radius r = √5 w (of which w is the standard deviation) the part between the Ewald spheres of the bandwidth's
  ends (White 2014, Phil. Trans. R. Soc. B 369, 20130330), 1 at ε = 0; w here without the bandwidth.

What a still records of a reflection is its density on the sphere, so that a broader reflection is weaker at its peak: all profiles
have the factor w0 / w, 1 where 1/d = 0.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ints = NDArray[np.int64]
Rows = NDArray[np.int32]

N_FIXED = 6
"""Parameters of a lattice beside its strains: log scale, B, two rotations, two log widths."""
GAUSSIAN, LORENTZIAN, OVERLAP, GIVEN, FULL = 0, 1, 2, 3, 4
"""Profiles; `GIVEN` is the partiality of integration, `FULL` is 1."""
SQRT5 = math.sqrt(5.0)
SIGMA_OF_HALF = 1.0 / math.sqrt(2.0 * math.log(2.0))
"""Standard deviation of a Gaussian over half its full width at half maximum, 0.85."""
LEAST_SLICE = 1e-3
"""Of the ball's radius: below it the slice between the two Ewald spheres counts as a plane."""


class Observed(NamedTuple):
    """Columns of observations, (n,) but for ``derivatives`` (n, 2 + strains)."""

    group: Rows
    intensity: Singles
    fixed: Singles
    gain: Singles
    excitation: Singles
    derivatives: Singles
    given: Singles


@njit(cache=True, nogil=True)
def part_of(observed: Observed, first: int, end: int) -> Observed:
    """Return the rows from ``first`` to ``end``."""
    return Observed(
        observed.group[first:end],
        observed.intensity[first:end],
        observed.fixed[first:end],
        observed.gain[first:end],
        observed.excitation[first:end],
        observed.derivatives[first:end],
        observed.given[first:end],
    )


@njit(cache=True, nogil=True)
def _overlap(excitation: float, w: float, half: float) -> tuple[float, float, float]:
    """Return the overlap, its derivative with ε and that with log w; ``half`` is half the distance of the two spheres."""
    r = SQRT5 * w
    d, moves = half / r, -1.0
    if d >= 1.0:
        d, moves = 1.0, 0.0
    elif d < LEAST_SLICE:
        d, moves = LEAST_SLICE, 0.0
    slice_ = d * r if moves == 0.0 and d < 1.0 else half
    x1, x0 = (excitation + slice_) / r, (excitation - slice_) / r
    if x0 >= 1.0 or x1 <= -1.0:
        return 0.0, 0.0, 0.0
    with1 = with0 = 0.0
    if x1 < 1.0:
        with1 = 1.0 - x1 * x1
    else:
        x1 = 1.0
    if x0 > -1.0:
        with0 = 1.0 - x0 * x0
    else:
        x0 = -1.0
    whole = 2.0 * d * (1.0 - d * d / 3.0)
    f = ((x1 - x0) - (x1**3 - x0**3) / 3.0) / whole
    # where the slice is of a fixed part of r it moves with r, and only ε / r changes
    move1, move0 = (-x1, -x0) if moves != 0.0 or d == 1.0 else (-excitation / r, -excitation / r)
    growth = (with1 * move1 - with0 * move0) / whole - f * 2.0 * (1.0 - d * d) * d * moves / whole
    return f, (with1 - with0) / (r * whole), growth


@njit(cache=True, nogil=True)
def profile(kind: int, excitation: float, w: float, half: float) -> float:
    """Return the profile, 1 at ε = 0; ``half`` (1/Å) is half the distance of the two Ewald spheres at the ends of the bandwidth."""
    u = excitation / w
    if kind == GAUSSIAN:
        return math.exp(-0.5 * u * u)
    if kind == LORENTZIAN:
        return 1.0 / (1.0 + 2.0 * u * u)
    value: float = _overlap(excitation, w, half)[0]
    return value


@njit(cache=True, nogil=True)
def squared_width(kind: int, w0: float, w1: float, inverse_d2: float, half: float) -> float:
    """Return w²."""
    w2 = w0 * w0 + w1 * w1 * inverse_d2
    return w2 if kind == OVERLAP else w2 + (SIGMA_OF_HALF * half) ** 2


@njit(cache=True, nogil=True)
def factors(
    kind: int, given: float, excitation: float, w0: float, w1: float, inverse_d2: float, half: float
) -> tuple[float, float]:
    """Return w0 / w and the partiality."""
    if kind == GIVEN:
        return 1.0, given
    if kind == FULL:
        return 1.0, 1.0
    w = math.sqrt(squared_width(kind, w0, w1, inverse_d2, half))
    return w0 / w, profile(kind, excitation, w, half)


@njit(cache=True, nogil=True)
def profile_slopes(kind: int, excitation: float, w: float, half: float, f: float) -> tuple[float, float]:
    """Return the derivatives of the profile with ε and with log w, where its value is ``f``."""
    u = excitation / w
    if kind == GAUSSIAN:
        return -f * u / w, f * u * u
    if kind == LORENTZIAN:
        return -4.0 * f * f * u / w, 4.0 * f * f * u * u
    _, with_e, with_w = _overlap(excitation, w, half)
    return with_e, with_w


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
def moved_excitation(observed: Observed, i: int, p: Floats) -> float:
    """Return the excitation error of an observation under the parameters of its lattice."""
    e: float = observed.excitation[i] + p[2] * observed.derivatives[i, 0] + p[3] * observed.derivatives[i, 1]
    for s in range(N_FIXED, p.shape[0]):
        e += p[s] * observed.derivatives[i, s - N_FIXED + 2]
    return e


@njit(cache=True, nogil=True)
def lattice_factors(
    observed: Observed,
    inverse_d2: Singles,
    shift: float,
    p: Floats,
    kind: int,
    full: Singles | Floats,
    partiality: Singles | Floats,
) -> None:
    """Write G exp(-B/2d²) w0/w and the partiality of one lattice's observations; ``shift`` is half Δ times d² (b λ / 4)."""
    w0, w1 = math.exp(p[4]), math.exp(p[5])
    for i in range(full.shape[0]):
        s2 = inverse_d2[i]
        v, part = factors(kind, observed.given[i], moved_excitation(observed, i, p), w0, w1, s2, shift * s2)
        full[i] = math.exp(p[0] - 0.5 * p[1] * s2) * v
        partiality[i] = part


@njit(cache=True, nogil=True)
def block_factors(
    starts: Ints, observed: Observed, inverse_d2: Floats, shift: Floats, parameters: Floats, kind: int
) -> tuple[Singles, Singles]:
    """Return `lattice_factors` of all observations; ``inverse_d2`` is by unique reflection, ``shift`` by lattice."""
    n = observed.excitation.shape[0]
    full, partiality = np.empty(n, dtype=np.float32), np.empty(n, dtype=np.float32)
    for j in range(starts.shape[0] - 1):
        first, end = starts[j], starts[j + 1]
        own = part_of(observed, first, end)
        s2 = np.empty(end - first, dtype=np.float32)
        for i in range(end - first):
            s2[i] = inverse_d2[own.group[i]]
        lattice_factors(own, s2, shift[j], parameters[j], kind, full[first:end], partiality[first:end])
    return full, partiality
