"""Spots of crystals on a detector that is not where its record says, by tracing rays; nothing of this is shared with metrology.

A reflection is diffracted by blocks of the crystal that are turned a little: the turn about q × s0 that fulfils Laue's condition is
found numerically, and the ray is met with the planes of the panels by solving for the point.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from xfelproc.algorithms.metrology import CrystalSpots
from xfelproc.geometry.hierarchy import PanelGroup, groups_of, moves_between, n_levels, rigid_modes
from xfelproc.models.experiment import Beam, Detector, DetectorGroup, Panel, as_vector

Floats = NDArray[np.float64]
PIXEL, ASIC = 0.11, (194, 185)
CELL = (58.0, 58.0, 150.0)
SPACE_GROUP = "P 41 21 2"
BEAM = Beam(1.3)


@dataclass(frozen=True)
class Errors:
    """Root mean square displacements of the panels: in the plane (px a component), out of it (px), turns (degrees, each axis)."""

    in_plane: float = 0.8
    out_of_plane: float = 0.5
    turn: float = 0.1


def flat_panel(name: str, right: float, up: float, distance: float, size: tuple[int, int], degrees: float = 0.0) -> Panel:
    """Return a panel about a point (mm) of a plane across the beam, turned about the beam."""
    turn = Rotation.from_rotvec([0, 0, degrees], degrees=True)
    half = 0.5 * PIXEL * np.array(size)
    fast, slow = turn.apply([1.0, 0.0, 0.0]), turn.apply([0.0, -1.0, 0.0])
    origin = np.array([right, up, -distance]) - half[0] * fast - half[1] * slow
    return Panel(name, as_vector(fast), as_vector(slow), as_vector(origin), (PIXEL, PIXEL), size, thickness=0.5, mu=10.9)


def cspad(distance: float = 125.0, n_quadrants: int = 4) -> Detector:
    """Return quadrants of 8 sensors of 2 ASICs about the beam, with their tree."""
    panels: list[Panel] = []
    quadrants = []
    for q in range(n_quadrants):
        about = Rotation.from_rotvec([0, 0, 90.0 * q], degrees=True)
        sensors = []
        for pair in range(4):
            turned = 90.0 * ((pair % 2 + pair // 2) % 2)
            middle = np.array([23.0 + 47.0 * (pair % 2), 29.0 + 47.0 * (pair // 2), 0.0])
            for second in (-1, 1):
                asics = []
                for first in (-1, 1):
                    local = Rotation.from_rotvec([0, 0, turned], degrees=True).apply([10.84 * first, 11.6 * second, 0.0])
                    right, up, _ = about.apply(local + middle)
                    asics.append(len(panels))
                    panels.append(flat_panel(f"q{q}a{len(panels) % 16}", right, up, distance, ASIC, turned + 90.0 * q))
                p = panels[asics[0]]
                sensors.append(DetectorGroup(f"q{q}s{len(sensors)}", tuple(asics), p.fast_axis, p.slow_axis, p.origin))
        quadrants.append(DetectorGroup(f"q{q}", tuple(sensors), (1, 0, 0), (0, 1, 0), (0.0, 0.0, -distance)))
    return Detector(tuple(panels), DetectorGroup("root", tuple(quadrants), (1, 0, 0), (0, 1, 0), (0.0, 0.0, -distance)))


def grid(n: int, size: tuple[int, int] = (128, 128), distance: float = 125.0) -> Detector:
    """Return n x n panels about the beam in 4 x 4 blocks, with their tree."""
    blocks: dict[tuple[int, int], list[int]] = {}
    panels = []
    for i in range(n):
        for j in range(n):
            right, up = ((np.array([j, i]) - 0.5 * (n - 1)) * (np.array(size) + 4.0) + 3.0) * PIXEL
            blocks.setdefault((i * 4 // n, j * 4 // n), []).append(len(panels))
            panels.append(flat_panel(f"p{len(panels)}", right, up, distance, size))
    groups = tuple(
        DetectorGroup(f"b{k}", tuple(m), (1, 0, 0), (0, -1, 0), (0.0, 0.0, -distance)) for k, m in enumerate(blocks.values())
    )
    return Detector(tuple(panels), DetectorGroup("root", groups, (1, 0, 0), (0, 1, 0), (0.0, 0.0, -distance)))


def displaced(
    detector: Detector, errors: Errors, rng: np.random.Generator, shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> Detector:
    """Return the detector with each panel moved by chance about its centre, and the whole by ``shift`` (mm)."""
    panels = []
    for p in detector.panels:
        half = 0.5 * np.array(p.image_size) * p.pixel_size
        centre = np.asarray(p.origin) + half[0] * np.array(p.fast_axis) + half[1] * np.array(p.slow_axis)
        move = rng.normal(size=3) * [errors.in_plane, errors.in_plane, errors.out_of_plane] * PIXEL + shift
        turn = Rotation.from_rotvec(rng.normal(size=3) * errors.turn, degrees=True)
        panels.append(
            replace(
                p,
                fast_axis=as_vector(turn.apply(p.fast_axis)),
                slow_axis=as_vector(turn.apply(p.slow_axis)),
                origin=as_vector(centre + move + turn.apply(np.asarray(p.origin) - centre)),
            )
        )
    return Detector(tuple(panels), detector.hierarchy)


def trace(detector: Detector, panel: NDArray[np.int64], s1: Floats) -> Floats:
    """Return (n, 2) px where rays are recorded on given panels, for photons that are absorbed on their way through the sensor."""
    out = np.empty((len(s1), 2))
    for number in np.unique(panel):
        p, rows = detector.panels[number], np.flatnonzero(panel == number)
        u = s1[rows] / np.linalg.norm(s1[rows], axis=1)[:, None]
        matrix = np.stack([np.broadcast_to(p.fast_axis, u.shape), np.broadcast_to(p.slow_axis, u.shape), -u], axis=2)
        met = np.linalg.solve(matrix, np.broadcast_to(-np.asarray(p.origin), u.shape)[:, :, None])[:, :2, 0]
        if p.mu > 0:
            way = p.thickness / np.abs(u @ np.asarray(p.normal))
            depth = 1.0 / p.mu - (way + 1.0 / p.mu) * np.exp(-p.mu * way)
            met = met + depth[:, None] * np.column_stack([u @ np.asarray(p.fast_axis), u @ np.asarray(p.slow_axis)])
        out[rows] = met / p.pixel_size
    return out


def turned_onto_sphere(q: Floats, s0: Floats) -> tuple[Floats, Floats]:
    """Return (n, 3) the points turned about q × s0 until |s0 + q| = |s0|, and the angles (radians), by Newton's method."""
    s0 = np.broadcast_to(s0, q.shape)
    axis = np.cross(q, s0)
    axis /= np.linalg.norm(axis, axis=1)[:, None]
    angle = np.zeros(len(q))
    for _ in range(12):
        turned = Rotation.from_rotvec(angle[:, None] * axis).apply(q)
        excess = np.sum((turned + s0) ** 2, axis=1) - np.sum(s0**2, axis=1)
        slope = 2.0 * np.sum(np.cross(axis, turned) * s0, axis=1)
        angle -= excess / slope
    return Rotation.from_rotvec(angle[:, None] * axis).apply(q), angle


def crystal_spots(
    detector: Detector, rng: np.random.Generator, n_spots: int, noise: float, mosaicity: float = 0.1, beam: Beam = BEAM
) -> tuple[CrystalSpots, Floats]:
    """Return a crystal's spots on ``detector`` with its lattice as indexing might leave it, and the true A.

    Parameters
    ----------
    noise
        Standard deviation of positions, px.
    mosaicity
        Standard deviation of the blocks' turns, degrees: of ΔΨ.
    """
    cell = np.array(CELL) * (1.0 + 0.002 * rng.normal(size=3)[[0, 0, 1]])
    turn = Rotation.random(random_state=rng)
    a = turn.as_matrix() / cell[None, :]
    s0 = beam.s0
    hkl = np.zeros((0, 3), dtype=np.int64)
    panel = np.zeros(0, dtype=np.int64)
    offered = 60 * n_spots
    while len(hkl) < n_spots and offered < 4000 * n_spots:
        panel = rng.integers(len(detector), size=offered)
        d = detector.d_matrices[panel]
        xy = rng.random((offered, 2)) * (detector.image_sizes * detector.pixel_sizes)[panel]
        lab = d[:, :, 0] * xy[:, :1] + d[:, :, 1] * xy[:, 1:] + d[:, :, 2]
        q = lab / np.linalg.norm(lab, axis=1)[:, None] / beam.wavelength - s0
        hkl = np.rint(np.linalg.solve(a, q.T).T).astype(np.int64)
        hkl, first = np.unique(hkl, axis=0, return_index=True)
        hkl, panel = hkl[rows := np.any(hkl != 0, axis=1)], panel[first][rows]
        point = hkl @ a.T
        away = (np.linalg.norm(s0 + point, axis=1) - 1.0 / beam.wavelength) / np.linalg.norm(point, axis=1)
        near = rng.random(len(hkl)) < np.exp(-0.5 * (away / np.radians(mosaicity)) ** 2)
        chosen = rng.permutation(np.flatnonzero(near))
        hkl, panel = hkl[chosen], panel[chosen]
        offered *= 2
    hkl, panel = hkl[: 2 * n_spots], panel[: 2 * n_spots]
    met, _ = turned_onto_sphere(hkl @ a.T, s0)
    position = trace(detector, panel, s0 + met)
    inside = np.flatnonzero(np.all((position > 0) & (position < detector.image_sizes[panel]), axis=1))[:n_spots]
    position = position[inside] + noise * rng.normal(size=(len(inside), 2))
    start = Rotation.from_rotvec(0.03 * rng.normal(size=3), degrees=True).as_matrix() @ a * (1.0 + 0.001 * rng.normal())
    variance = np.full(len(inside), max(noise, 0.01) ** 2)
    spots = CrystalSpots(
        start,
        SPACE_GROUP,
        beam.wavelength,
        hkl[inside].astype(np.int32),
        panel[inside].astype(np.int32),
        position[:, 0],
        position[:, 1],
        variance,
        variance,
        int(rng.integers(2**31)),
    )
    return spots, a


def shots(
    detector: Detector,
    n: int,
    rng: np.random.Generator,
    noise: float = 0.2,
    spots: tuple[int, int] = (60, 150),
    mosaicity: float = 0.1,
) -> list[CrystalSpots]:
    """Return crystals of so many spots each."""
    return [crystal_spots(detector, rng, int(rng.integers(spots[0], spots[1] + 1)), noise, mosaicity)[0] for _ in range(n)]


def _off(found: Detector, truth: Detector, level: int) -> tuple[tuple[PanelGroup, ...], Floats]:
    groups = groups_of(found, level)
    return groups, -moves_between(found, truth, groups)


def errors_in_plane(found: Detector, truth: Detector, level: int | None = None) -> Floats:
    """Return (group, 2) errors along fast and slow (px) without common shift, turn about the beam, and scale."""
    return _without_common(*_off(found, truth, n_levels(found) - 1 if level is None else level))[:, :2] / PIXEL


def errors_across_rays(found: Detector, truth: Detector, level: int | None = None) -> Floats:
    """Return the same of where a ray meets the groups' centres: what predicted spots are off by."""
    groups, off = _off(found, truth, n_levels(found) - 1 if level is None else level)
    for group, row in zip(groups, off, strict=True):
        slope = group.axes @ group.centre
        row[:2] -= slope[:2] / slope[2] * row[2]
    return _without_common(groups, off)[:, :2] / PIXEL


def _without_common(groups: tuple[PanelGroup, ...], off: Floats) -> Floats:
    modes = rigid_modes(groups, np.eye(3), np.zeros(3))[:, [0, 1, 5]]
    scale = np.concatenate([[*(g.axes @ [g.centre[0], g.centre[1], 0.0]), 0, 0, 0] for g in groups])
    rows = (6 * np.arange(len(groups))[:, None] + [0, 1]).ravel()
    design = np.column_stack([modes, scale])[rows]
    out = off.copy()
    left = off.ravel()[rows] - design @ np.linalg.lstsq(design, off.ravel()[rows], rcond=None)[0]
    out[:, :2] = left.reshape(-1, 2)
    return out


def internal_errors(found: Detector, truth: Detector, level: int | None = None) -> Floats:
    """Return (group, 6) errors (mm, radians) without movements of the whole, least squares over moves and turns times the reach."""
    groups, off = _off(found, truth, n_levels(found) - 1 if level is None else level)
    lever = np.concatenate([[1.0, 1.0, 1.0, g.reach, g.reach, g.reach] for g in groups])
    modes = rigid_modes(groups, np.eye(3), groups[0].centre) * lever[:, None]
    flat = off.ravel() * lever
    left: Floats = (flat - modes @ np.linalg.lstsq(modes, flat, rcond=None)[0]) / lever
    return left.reshape(-1, 6)
