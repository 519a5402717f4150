"""Indexing without a cell: one-dimensional Fourier transforms over directions (Steller, Bolotovsky & Rossmann 1997)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
import scipy.fft
from pydantic import Field

from xfelproc.algorithms.indexing.cell_search import half_sphere, padded
from xfelproc.geometry.cells import Floats
from xfelproc.geometry.reduction import reduced_basis
from xfelproc.kernels.fft_search import project_spots, refine_free_vectors, spectrum_peaks
from xfelproc.kernels.lattice_search import fit_lattice, lattice_distances
from xfelproc.models.parameters import Algorithm

_THRESHOLDS = (0.8, 0.9, 0.65, 0.5)
_SHORT = 100.0  # Å: most primitive cells have no longer axis, and short transforms are quick
_BLOCK = 256
_FREE = 0.3  # relative σ of axes without a known cell


class Fft1d(Algorithm):
    """1-D FFT over directions (Steller et al. 1997), peak refinement and reduction."""

    method: Literal["fft1d"] = "fft1d"
    max_axis: Annotated[float, Field(gt=10, le=2000, description="longest axis of the primitive reduced cell looked for, Å")] = (
        200.0
    )
    min_axis: Annotated[float, Field(gt=1, le=100, description="shortest axis of the primitive reduced cell looked for, Å")] = 4.0
    step: Annotated[float, Field(gt=0.2, le=4, description="step between directions, degrees")] = 2.0
    max_spots: Annotated[int, Field(ge=16, le=2000, description="strongest spots used for the search")] = 128
    n_candidates: Annotated[int, Field(ge=20, le=20000, description="peaks of the transforms that are refined")] = 500

    def search(self, q: Floats, weight: Floats, tolerance: float) -> Iterator[Floats]:
        """Yield candidate primitive reduced bases (rows a, b, c): first from short axes, then from all allowed.

        ``q`` (n, 3) in 1/Å and ``weight`` (n,), strongest spot first; ``tolerance`` in 1/Å.
        """
        n = min(self.max_spots, len(q))
        q_used, w_used = np.ascontiguousarray(q[:n]), np.ascontiguousarray(weight[:n])
        few = min(n, 64)
        for longest in sorted({min(_SHORT, self.max_axis), self.max_axis}):
            vectors = self._peaks(q_used, w_used, longest)
            if len(vectors) == 0:
                continue
            vectors, _ = refine_free_vectors(vectors, q_used[:few], w_used[:few], 0.05, 2, self.min_axis, 150)
            vectors, scores = refine_free_vectors(vectors, q_used, w_used, 0.05, 3, self.min_axis, 60)
            bases: list[Floats] = []
            for threshold in _THRESHOLDS:
                basis = shortest_basis(vectors[scores >= threshold * scores[0]])
                if basis is None or any(np.allclose(basis, other) for other in bases):
                    continue
                bases.append(basis)
                fitted = self.polish(basis, q_used, w_used, tolerance)
                if fitted is not None:
                    yield fitted

    def _peaks(self, q: Floats, weight: Floats, longest: float) -> Floats:
        """Return the vectors (k, 3) of the strongest peaks of the transforms up to a length."""
        length = np.linalg.norm(q, axis=1)
        q_limit = 1.02 * float(np.max(length))
        n_bins = 2 * scipy.fft.next_fast_len(max(32, math.ceil(2.0 * q_limit * longest)), real=True)
        directions = half_sphere(math.radians(self.step))
        step = 1.0 / (2.0 * q_limit)
        shortest = max(self.min_axis, 1.2 / math.sqrt(float(np.mean(length**2))))
        first = max(2, math.ceil(shortest / step))
        last = min(n_bins // 2 - 1, math.ceil(longest / step) + 1)
        if last <= first:
            return np.empty((0, 3))
        q32, w32 = padded(q, weight)
        peak = np.empty((len(directions), 2), dtype=np.int64)
        power = np.empty((len(directions), 2), dtype=np.float32)
        histograms = np.empty((_BLOCK, n_bins), dtype=np.float32)
        for start in range(0, len(directions), _BLOCK):  # blocks stay in the cache
            part = slice(start, min(start + _BLOCK, len(directions)))
            rows = histograms[: part.stop - start]
            project_spots(directions[part], q32, w32, q_limit, rows)
            spectra = scipy.fft.rfft(rows, axis=1)
            spectrum_peaks(spectra.view(np.float32), first, last, peak[part], power[part])
        flat = power.ravel()
        n_kept = min(self.n_candidates, len(flat) - 1)
        top = np.argpartition(-flat, n_kept)[:n_kept]
        top = top[flat[top] > 0]
        vectors: Floats = directions[top // 2].astype(np.float64) * (peak.ravel()[top] * step)[:, None]
        return vectors

    def polish(self, basis: Floats, q: Floats, weight: Floats, tolerance: float) -> Floats | None:
        """Return the basis fitted to the spots, freed of needless multiples, and reduced; None if nothing of the kind is left."""
        fitted = basis.copy()
        for _ in range(3):
            last = min(tolerance, 0.3 / float(np.max(np.linalg.norm(fitted, axis=1))))
            fit_lattice(fitted, fitted.copy(), q, weight, np.array([2.0 * last, last, last]), _FREE)
            finer = undo_multiple(fitted, q, last)
            if finer is None:
                break
            fitted = finer
        lengths = np.linalg.norm(fitted, axis=1)
        if np.min(lengths) < self.min_axis or abs(float(np.linalg.det(fitted))) < 0.1 * float(np.prod(lengths)):
            return None
        return np.ascontiguousarray(reduced_basis(fitted)[0])


def shortest_basis(vectors: Floats) -> Floats | None:
    """Return the three shortest vectors that span space, as rows of a right-handed basis; None if there are none."""
    order = np.argsort(np.linalg.norm(vectors, axis=1), kind="stable")
    rows: list[Floats] = []
    for v in vectors[order]:
        unit = v / np.linalg.norm(v)
        if len(rows) == 1 and abs(float(rows[0] @ unit)) > 0.97 * float(np.linalg.norm(rows[0])):
            continue
        if len(rows) == 2:
            normal = np.cross(rows[0], rows[1])
            if abs(float(normal @ unit)) < 0.2 * float(np.linalg.norm(normal)):
                continue
        rows.append(v)
        if len(rows) == 3:
            basis = np.array(rows)
            return basis if np.linalg.det(basis) > 0 else -basis
    return None


def _sublattices() -> Floats:
    """Return (c0, c1, c2, p): the congruences c · hkl ≡ 0 (mod p) that leave a sublattice of reciprocal space, p = 2 and 3."""
    found = []
    for p in (2, 3):
        for c in np.ndindex(p, p, p):
            if any(c) and next(v for v in c if v) == 1:
                found.append((*c, p))
    return np.array(found, dtype=np.float64)


_COEFFICIENTS, _MODULI = _sublattices()[:, :3], _sublattices()[:, 3]


def undo_multiple(basis: Floats, q: Floats, tolerance: float) -> Floats | None:
    """Return the lattice of which ``basis`` spans a needless multiple, or None.

    If nearly all explained spots obey c · hkl ≡ 0 (mod p), the vector ``c (a, b, c) / p`` belongs to the lattice as well.
    """
    hkl, fraction, distance = lattice_distances(np.ascontiguousarray(basis), q)
    used = hkl[(distance < tolerance) & (fraction < 0.3)].astype(np.int64)
    if len(used) < 6:
        return None
    obeyed = np.count_nonzero((used.astype(np.float64) @ _COEFFICIENTS.T) % _MODULI == 0, axis=0)
    for k in np.flatnonzero(obeyed >= 0.93 * len(used))[:1]:
        c = _COEFFICIENTS[k]
        finer = basis.copy()
        finer[int(np.flatnonzero(c)[0])] = c @ basis / _MODULI[k]
        return np.ascontiguousarray(reduced_basis(finer)[0])
    return None
