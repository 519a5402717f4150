"""Powder rings to beam centre, distance and tilt.

A ring is measured in pieces: on each panel, sector by sector, its place along the radius. A detector is sought by which all
pieces lie at the angles of their d-spacings. A search by the sharpness of the radial profile comes first, so that the recorded
geometry need not be good.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import least_squares

from xfelproc.algorithms.calibration.powder_search import Plane, flattened, search_centre, search_distance
from xfelproc.errors import DataError
from xfelproc.geometry.detector import pixel_to_lab
from xfelproc.models.experiment import Beam, Detector, as_vector
from xfelproc.models.parameters import Parameters

Floats = NDArray[np.float64]

SECTORS = 72
ROUNDS = 10
MIN_POINTS = 12
MIN_SIGNAL = 5.0
"""A piece of a ring counts from this many σ above its background."""
SEEN = 0.2
"""A ring counts if it is seen in this share of the sectors that the detector has of it."""
RANDOM = 0.5
"""Pieces that scatter by more than this share of what random places would are no rings."""
OUTLIER = 4.0
"""Pieces further off than this, in robust σ, are left out."""


@dataclass(frozen=True)
class RingPoints:
    """Pieces of rings: pixel coordinates, the d-spacing they belong to (Å), and the uncertainty of their radius (px)."""

    panel: NDArray[np.int64]
    fast: Floats
    slow: Floats
    ring: NDArray[np.int64]
    sigma: Floats

    def __len__(self) -> int:
        return len(self.panel)


@dataclass(frozen=True)
class RingFit:
    """One ring in the end: d-spacing (Å), pieces used, and their rms distance from where the ring should be (px)."""

    d: float
    n_points: int
    rms: float


@dataclass(frozen=True)
class PowderResult:
    """The detector found, and how it lies to the one given.

    ``shift`` is the translation along the laboratory's x and y (as far as they are across the beam) and along the beam, mm;
    ``tilt`` (degrees) as in `Detector.moved`, 0 where it was not asked for. ``sigma`` are the standard uncertainties of the five.
    """

    detector: Detector
    shift: tuple[float, float, float]
    tilt: tuple[float, float]
    sigma: tuple[float, float, float, float, float]
    rings: tuple[RingFit, ...]
    rms: float


class Powder(Parameters):
    """How rings are searched for and fitted."""

    search_center: Annotated[float, Field(ge=0, le=1000, description="how far off the recorded beam centre may be, px")] = 20.0
    search_distance: Annotated[float, Field(ge=0, le=0.4, description="how far off the recorded distance may be, relative")] = 0.1
    tilt: Annotated[bool, Field(description="find the detector's tilt, too; it needs wide rings")] = False
    window: Annotated[float, Field(ge=2, le=100, description="half the width of the strip in which a ring is measured, px")] = 8.0

    def fit(
        self, image: NDArray[Any], good: NDArray[np.bool_], detector: Detector, beam: Beam, spacings: tuple[float, ...]
    ) -> PowderResult:
        """Return the detector by which the rings of an image lie at their d-spacings.

        Parameters
        ----------
        image, good
            (panel, slow, fast): mean (or maximum) of frames, and which pixels are usable.
        detector, beam
            As recorded.
        spacings
            d-spacings of the rings, Å.

        Raises
        ------
        DataError
            If the rings are not found, or do not determine the detector.
        """
        good = good & np.isfinite(image)
        wanted = np.array([d for d in sorted(spacings, reverse=True) if 2.0 * d > beam.wavelength])
        if not good.any() or len(wanted) == 0:
            raise DataError("no usable pixel, or no ring that this wavelength reaches: give the mean of frames with rings")
        start = self._search(image, good, detector, beam, wanted)
        place = _Place(detector, beam, self.tilt, start)
        window, before = self.window, np.full(len(place.values), np.inf)
        for round_ in range(ROUNDS):
            points = find_rings(image, good, place.detector, beam, wanted, window)
            place, used = _fit(place, points, wanted)
            if round_ > 1 and np.all(np.abs(place.values - before) < 0.05 * place.sigma):
                break
            before = place.values
            window = min(self.window, max(6.0, 0.75 * window))
        result = _result(place, points, used, wanted)
        random = 0.7 * window / np.sqrt(3.0)
        if result.rms > RANDOM * random:
            raise DataError(
                f"what is found near the rings' places does not lie on them: {len(points)} pieces scatter by {result.rms:.2f} px "
                f"rms, random places by {random:.2f} px: these frames show no rings of this powder, "
                "or the rings are wider than --window"
            )
        return result

    def _search(self, image: NDArray[Any], good: NDArray[np.bool_], detector: Detector, beam: Beam, spacings: Floats) -> Floats:
        """Return the translation (mm) across the beam, twice, and along it, by which the rings are sharpest and fit best."""
        plane = Plane.of(detector, beam)
        flat = flattened(image, good, plane, detector)
        centre = search_centre(flat, self.search_center) if self.search_center else np.zeros(2)
        factor = search_distance(flat, centre, _tangents(spacings, beam) * plane.distance / plane.pixel, self.search_distance)
        # points seen at ``centre`` are to be seen at the beam: along the beam the plane moves with the distance
        across = -centre * plane.pixel
        return np.array([across[0], across[1], (factor - 1.0) * plane.distance])


def _tangents(spacings: Floats, beam: Beam) -> Floats:
    """Return tan 2θ of d-spacings; infinite at and beyond 90°."""
    angle = 2.0 * np.arcsin(np.minimum(beam.wavelength / (2.0 * spacings), 1.0))
    return np.where(angle < 0.5 * np.pi - 0.01, np.tan(np.minimum(angle, 1.56)), np.inf)


class _Place:
    """Where the detector is: the parameters, in units of mm and degrees, and their uncertainties."""

    def __init__(self, recorded: Detector, beam: Beam, tilt: bool, values: Floats, sigma: Floats | None = None) -> None:
        self.recorded, self.beam, self.tilt = recorded, beam, tilt
        self.values = values if len(values) == (5 if tilt else 3) else np.append(values, [0.0, 0.0])
        self.sigma = np.full(len(self.values), np.inf) if sigma is None else sigma
        self.detector = self.moved(self.values)

    def moved(self, values: Floats) -> Detector:
        frame = Plane.frame(self.beam)
        shift, tilt = frame.T @ values[:3], values[3:] if self.tilt else np.zeros(2)
        return self.recorded.moved(as_vector(shift), (float(tilt[0]), float(tilt[1])))


def find_rings(
    image: NDArray[Any], good: NDArray[np.bool_], detector: Detector, beam: Beam, spacings: Floats, window: float
) -> RingPoints:
    """Return the pieces of the rings: of each panel and sector of 5° the place of the peak along the radius.

    ``window`` (px) is half the width of the strip about the place where each ring should be.
    """
    plane = Plane.of(detector, beam)
    radii = _tangents(spacings, beam) * plane.distance / plane.pixel
    radii[~np.isfinite(radii)] = 1e9
    order = np.argsort(radii)
    gaps = np.diff(radii[order], prepend=-np.inf, append=np.inf)
    half = np.empty(len(radii))
    half[order] = np.minimum(window, 0.5 * np.minimum(gaps[:-1], gaps[1:]))
    found, looked_at = [], np.zeros(len(radii))
    for number in range(len(detector)):
        x, y = plane.project(detector, number)
        radius = np.hypot(x, y)
        for ring in np.flatnonzero((radii < 1e9) & (half > 1.5)):
            near = np.flatnonzero((np.abs(radius - radii[ring]) <= half[ring]) & good[number])
            if len(near) < 5 * half[ring]:
                continue
            place, phi, sigma, sectors = _pieces(
                radius.flat[near] - radii[ring], np.arctan2(y.flat[near], x.flat[near]), image[number].flat[near], half[ring]
            )
            looked_at[ring] += sectors
            rows = _on_panel(plane, detector, number, radii[ring] + place, phi)
            found.append(np.column_stack([np.full(len(phi), number), rows, np.full(len(phi), ring), sigma]))
    table = np.concatenate(found) if found else np.zeros((0, 5))
    mine = table[:, 3].astype(np.int64)
    table = table[(np.bincount(mine, minlength=len(radii)) >= SEEN * looked_at)[mine]]
    return RingPoints(table[:, 0].astype(np.int64), table[:, 1], table[:, 2], table[:, 3].astype(np.int64), table[:, 4])


def _on_panel(plane: Plane, detector: Detector, number: int, radius: Floats, phi: Floats) -> Floats:
    """Return (n, 2) pixel coordinates on a panel of places in the plane."""
    rays = plane.rays(radius * np.cos(phi), radius * np.sin(phi))
    v = rays @ detector.inverse_d_matrices[number].T
    pixels: Floats = v[:, :2] / v[:, 2:] / detector.pixel_sizes[number]
    return pixels


def _pieces(offset: Floats, phi: Floats, values: NDArray[Any], half: float) -> tuple[Floats, Floats, Floats, int]:
    """Return, of the sectors that show a peak, its place in the strip (px), its azimuth (radians) and the uncertainty (px).

    Last comes the number of sectors that the panel has of the ring.
    """
    n_bins = max(5, int(2 * half))
    bins = np.minimum(((offset + half) * (n_bins / (2 * half))).astype(np.int64), n_bins - 1)
    sector = np.minimum(((phi / (2 * np.pi) + 0.5) * SECTORS).astype(np.int64), SECTORS - 1)
    cell, shape = sector * n_bins + bins, (SECTORS, n_bins)
    size = SECTORS * n_bins
    count = np.bincount(cell, minlength=size).reshape(shape)
    value = values.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(cell, value, size).reshape(shape) / count
        at = np.bincount(cell, offset, size).reshape(shape) / count
        azimuth = np.bincount(sector, phi, SECTORS) / np.bincount(sector, minlength=SECTORS)
    whole = count.min(axis=1) >= 2
    if not whole.any():
        return np.zeros(0), np.zeros(0), np.zeros(0), 0
    place, sigma, signal = _peaks(at[whole], mean[whole], half)
    keep = (signal > MIN_SIGNAL) & (np.abs(place) < 0.7 * half)
    return place[keep], azimuth[whole][keep], sigma[keep], int(np.count_nonzero(whole))


def _peaks(at: Floats, profile: Floats, half: float) -> tuple[Floats, Floats, Floats]:
    """Return place, uncertainty and significance of the peak of each profile (n, bin), above a straight background.

    The background is a line through the means of the outer fifths; the place is the centroid in a window about itself.
    """
    edge = max(1, profile.shape[1] // 5)
    left, right = profile[:, :edge].mean(axis=1), profile[:, -edge:].mean(axis=1)
    from_, to = at[:, :edge].mean(axis=1), at[:, -edge:].mean(axis=1)
    slope = (right - left) / (to - from_)
    net = profile - (left[:, None] + slope[:, None] * (at - from_[:, None]))
    noise = np.sqrt(0.5 * (np.var(net[:, :edge], axis=1) + np.var(net[:, -edge:], axis=1))) if edge > 1 else np.std(net, axis=1) / 3
    noise = np.maximum(noise, np.median(noise) + 1e-12)  # by few bins: never taken to be less than that of the others
    smooth = net.copy()
    smooth[:, 1:-1] += net[:, :-2] + net[:, 2:]
    place = at[np.arange(len(at)), np.argmax(smooth, axis=1)]
    reach = max(2.0, 0.5 * half)
    for _ in range(4):
        weight = np.clip(reach + 0.5 - np.abs(at - place[:, None]), 0.0, 1.0)
        total = np.sum(weight * net, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            moved = np.sum(weight * net * at, axis=1) / total
        place = np.where((total > 0) & (np.abs(moved) < half), moved, place)
    spread = np.sqrt(np.sum(weight**2 * (at - place[:, None]) ** 2, axis=1))
    significance = total / (noise * np.sqrt(np.sum(weight**2, axis=1)))
    return place, noise * spread / np.maximum(total, 1e-30), significance


def _residuals(detector: Detector, beam: Beam, points: RingPoints, spacings: Floats) -> Floats:
    """Return how far the pieces lie outside their rings, in pixels along the radius."""
    lab = pixel_to_lab(detector, points.panel, points.fast, points.slow)
    forward = -np.asarray(beam.direction)
    along = lab @ forward
    across = np.linalg.norm(lab - along[:, None] * forward, axis=1)
    tangent = _tangents(spacings, beam)[points.ring]
    difference: Floats = (across - along * tangent) / detector.pixel_sizes[points.panel].mean(axis=1)
    return difference


def _fit(place: _Place, points: RingPoints, spacings: Floats) -> tuple[_Place, NDArray[np.bool_]]:
    """Return the place fitted to the pieces, and which of them were used.

    Raises
    ------
    DataError
        If there are too few, or they leave the detector free.
    """
    if len(points) < MIN_POINTS:
        raise DataError(
            f"{len(points)} pieces of rings are found, at least {MIN_POINTS} are needed: is this the right powder and "
            "wavelength, and is the recorded geometry near enough (--search-center, --search-distance)?"
        )
    scale = np.hypot(points.sigma, 0.05)  # a piece is no better than a part of a pixel: response, and shape of the ring
    used = np.ones(len(points), dtype=np.bool_)
    values = place.values
    for _ in range(3):
        chosen = RingPoints(*(getattr(points, name)[used] for name in ("panel", "fast", "slow", "ring", "sigma")))

        def residual(p: Floats, chosen: RingPoints = chosen, weight: Floats = 1.0 / scale[used]) -> Floats:
            return _residuals(place.moved(p), place.beam, chosen, spacings) * weight

        solution = least_squares(residual, values, loss="soft_l1", x_scale="jac", diff_step=np.full(len(values), 1e-6))
        values = solution.x
        every = _residuals(place.moved(values), place.beam, points, spacings) / scale
        middle = float(np.median(every[used]))
        robust = 1.4826 * float(np.median(np.abs(every[used] - middle)))
        keep = np.abs(every) < OUTLIER * max(1.0, robust)
        if np.array_equal(keep, used) or np.count_nonzero(keep) < MIN_POINTS:
            break
        used = keep
    sigma = _uncertainties(place, values, points, used, scale, spacings)
    return _Place(place.recorded, place.beam, place.tilt, values, sigma), used


def _uncertainties(
    place: _Place, values: Floats, points: RingPoints, used: NDArray[np.bool_], scale: Floats, spacings: Floats
) -> Floats:
    """Return standard uncertainties from the normal matrix, enlarged by the scatter where that is more than expected."""
    weight = np.where(used, 1.0 / scale, 0.0)
    steps = np.full(len(values), 1e-4)
    columns = []
    for i, step in enumerate(steps):
        up, down = values.copy(), values.copy()
        up[i] += step
        down[i] -= step
        change = _residuals(place.moved(up), place.beam, points, spacings) - _residuals(
            place.moved(down), place.beam, points, spacings
        )
        columns.append(change / (2 * step) * weight)
    jacobian = np.column_stack(columns)
    normal = jacobian.T @ jacobian
    size = np.sqrt(np.diag(normal))
    if np.any(size == 0) or np.linalg.cond(normal / np.outer(size, size)) > 1e10:
        raise DataError("the rings do not determine the detector: they cover too little; leave --tilt out, or use other frames")
    every = _residuals(place.moved(values), place.beam, points, spacings) * weight
    freedom = max(1, int(np.count_nonzero(used)) - len(values))
    sigma: Floats = np.sqrt(np.diag(np.linalg.inv(normal)) * max(1.0, float(every @ every) / freedom))
    return sigma


def _result(place: _Place, points: RingPoints, used: NDArray[np.bool_], spacings: Floats) -> PowderResult:
    every = _residuals(place.detector, place.beam, points, spacings)
    rings = []
    for ring in np.unique(points.ring[used]):
        mine = every[used & (points.ring == ring)]
        rings.append(RingFit(float(spacings[ring]), len(mine), float(np.sqrt(np.mean(mine**2)))))
    frame = Plane.frame(place.beam)
    values, sigma = np.zeros(5), np.zeros(5)
    values[: len(place.values)], sigma[: len(place.values)] = place.values, place.sigma
    shift = frame.T @ values[:3]
    return PowderResult(
        detector=place.detector,
        shift=as_vector(shift),
        tilt=(float(values[3]), float(values[4])),
        sigma=(float(sigma[0]), float(sigma[1]), float(sigma[2]), float(sigma[3]), float(sigma[4])),
        rings=tuple(rings),
        rms=float(np.sqrt(np.mean(every[used] ** 2))),
    )
