"""The scatter of cells, whatever wrong ones are among them, and how far a cell is from it.

Cells are compared as reciprocal metrics in the directions that the space group leaves free, relative to the median cell: a
tetragonal lattice has two numbers, a triclinic one six. Mahalanobis distances do not depend on which numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from xfelproc.geometry.cells import metric_tensor
from xfelproc.geometry.constraints import metric_basis

Floats = NDArray[np.float64]

LEAST_SPREAD = 2e-5
"""Of the relative metric: cells are not told apart that differ by less than 1 part in 10⁵ of a length."""
FEWEST = 10
"""Lattices a free parameter from which covariances are estimated; of fewer, the spread of each parameter by itself."""
NORMAL = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""
KEPT = 0.975
"""Share of a normal distribution that the last estimate is formed of."""


@dataclass(frozen=True)
class CellSpread:
    """Centre (k,) and inverse covariance (k, k) of cells: ``directions`` (k, 3, 3) of their metrics relative to ``root`` (3, 3).

    ``root`` is the lower triangle whose square is the metric of the median cell, Å.
    """

    root: Floats
    directions: Floats
    centre: Floats
    precision: Floats

    @classmethod
    def of(cls, cells: Floats, symbol: str) -> Self:
        """Return the spread of cells (n, 6), n > 0, Å and degrees, in a space group (Hermann-Mauguin symbol)."""
        median = np.median(cells, axis=0)
        root: Floats = np.linalg.cholesky(metric_tensor(median.tolist())).astype(np.float64)
        # G* = root⁻ᵀ (1 + E) root⁻¹: the free directions of E
        free = np.einsum("ji,njk,kl->nil", root, metric_basis(symbol), root)
        _, _, rows = np.linalg.svd(free.reshape(len(free), 9), full_matrices=False)
        directions = rows.reshape(-1, 3, 3)
        values = _coordinates(cells, root, directions)
        centre, covariance = robust_covariance(values)
        covariance += LEAST_SPREAD**2 * np.eye(len(centre))
        return cls(root, directions, centre, np.linalg.inv(covariance).astype(np.float64))

    def distances(self, cells: Floats) -> Floats:
        """Return the Mahalanobis distance of each cell (n, 6), in standard deviations."""
        offset = _coordinates(cells, self.root, self.directions) - self.centre
        distances: Floats = np.sqrt(np.maximum(np.einsum("ni,ij,nj->n", offset, self.precision, offset), 0.0))
        return distances


def _coordinates(cells: Floats, root: Floats, directions: Floats) -> Floats:
    """Return the reciprocal metrics relative to that of ``root`` (rootᵀ G* root) along the directions, (n, k)."""
    lengths, cosines = cells[:, :3], np.cos(np.radians(cells[:, 3:]))
    metric = lengths[:, :, None] * lengths[:, None, :]
    for row, (i, j) in enumerate(((1, 2), (0, 2), (0, 1))):
        metric[:, i, j] *= cosines[:, row]
        metric[:, j, i] *= cosines[:, row]
    relative = np.einsum("ji,njk,kl->nil", root, np.linalg.inv(metric), root)
    coordinates: Floats = np.einsum("nij,kij->nk", relative, directions)
    return coordinates


def robust_covariance(values: Floats) -> tuple[Floats, Floats]:
    """Return centre (k,) and covariance (k, k) of most of the rows (n, k), n > 0: up to half of them may be anything.

    Notes
    -----
    The minimum covariance determinant by concentration steps from two deterministic starts (Rousseeuw & Van Driessen 1999,
    Technometrics 41, 212; Hubert, Rousseeuw & Verdonck 2012, J. Comput. Graph. Stat. 21, 618), and one step of reweighting.
    """
    n, k = values.shape
    median = np.median(values, axis=0)
    spread = np.maximum(NORMAL * np.median(np.abs(values - median), axis=0), LEAST_SPREAD)
    if n < FEWEST * k:
        return median, np.diag(spread**2)
    z = (values - median) / spread
    h = (n + k + 1) // 2
    found = [_concentrated(z, h, squared) for squared in _starts(z)]
    centre, covariance = min(found, key=lambda pair: float(np.linalg.slogdet(pair[1])[1]))
    squared = _squared(z, centre, covariance)
    covariance = covariance * np.median(squared) / _quantile(0.5, k)
    rows = z[squared <= np.median(squared) * _quantile(KEPT, k) / _quantile(0.5, k)]
    centre, covariance = rows.mean(axis=0), _covariance(rows) * _consistency(k)
    return median + spread * centre, covariance * np.outer(spread, spread)


def _starts(z: Floats) -> Iterator[Floats]:
    """Yield squared distances of the rows by which the first subset is chosen."""
    yield np.einsum("ni,ni->n", z, z)
    bounded = np.tanh(z)
    yield _squared(z, np.zeros(z.shape[1]), _covariance(bounded))


def _concentrated(z: Floats, h: int, squared: Floats) -> tuple[Floats, Floats]:
    """Return mean and covariance of the ``h`` rows that are nearest to their own mean."""
    chosen = np.sort(np.argpartition(squared, h - 1)[:h])
    for _ in range(100):
        centre, covariance = z[chosen].mean(axis=0), _covariance(z[chosen])
        again = np.sort(np.argpartition(_squared(z, centre, covariance), h - 1)[:h])
        if np.array_equal(again, chosen):
            break
        chosen = again
    return centre, covariance


def _covariance(rows: Floats) -> Floats:
    # a direction without any spread has a little: the inverse must exist
    covariance: Floats = np.atleast_2d(np.cov(rows, rowvar=False)) + 1e-6 * np.eye(rows.shape[1])
    return covariance


def _squared(z: Floats, centre: Floats, covariance: Floats) -> Floats:
    offset = z - centre
    squared: Floats = np.einsum("ni,ij,nj->n", offset, np.linalg.inv(covariance), offset)
    return squared


def _quantile(share: float, degrees: int) -> float:
    """Return the quantile of the χ² distribution."""
    from scipy.special import gammaincinv  # a second to import: not at every start

    return 2.0 * float(gammaincinv(0.5 * degrees, share))


def _consistency(k: int) -> float:
    """Return the factor on the covariance of the nearest `KEPT` of a normal distribution."""
    from scipy.special import gammainc

    return KEPT / float(gammainc(0.5 * k + 1.0, 0.5 * _quantile(KEPT, k)))
