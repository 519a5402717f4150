"""A recorded geometry that is wrong: parts of the detector moved from where they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from xfelproc.errors import ConfigError
from xfelproc.models.experiment import Detector, DetectorGroup, Panel, as_vector
from xfelproc.simulation.layout import middle
from xfelproc.simulation.settings import Displacement, GeometryErrorSettings

Floats = NDArray[np.float64]


def displaced(detector: Detector, error: GeometryErrorSettings, seed: int) -> Detector:
    """Return the detector as it is recorded where the truth is ``detector``.

    Quadrants are moved first, then sensors with them, then panels; then the whole.

    Raises
    ------
    ConfigError
        If a level is to be displaced that the detector does not have.
    """
    rng = np.random.default_rng([seed, 7])
    for depth, (name, displacement) in enumerate((("quadrants", error.quadrants), ("sensors", error.sensors)), 1):
        if displacement != Displacement():
            parts = _parts(detector.hierarchy, depth)
            if not parts:
                raise ConfigError(f"geometry_error.{name}: this layout has no such parts; displace its panels instead")
            detector = _displace(detector, [part.panels() for part in parts], displacement, rng)
    if error.panels != Displacement():
        detector = _displace(detector, [(i,) for i in range(len(detector))], error.panels, rng)
    pixel = detector.panels[0].pixel_size[0]
    return detector.shifted((error.centre[0] * pixel, -error.centre[1] * pixel, -error.distance))


def _parts(group: DetectorGroup | None, depth: int) -> list[DetectorGroup]:
    """Return the groups ``depth`` levels below ``group``."""
    if group is None or depth == 0:
        return [] if group is None else [group]
    return [part for child in group.children if isinstance(child, DetectorGroup) for part in _parts(child, depth - 1)]


def _displace(detector: Detector, parts: list[tuple[int, ...]], size: Displacement, rng: np.random.Generator) -> Detector:
    """Return the detector with each part moved as a rigid body about the mean of its panels' middles."""
    pixel = detector.panels[0].pixel_size[0]
    moves = _draw((size.in_plane * pixel, size.in_plane * pixel, size.out_of_plane * pixel), len(parts), rng)
    turns = _draw((size.tilt, size.tilt, size.rotation), len(parts), rng)
    panels = list(detector.panels)
    for members, move, turn in zip(parts, moves, turns, strict=True):
        first = panels[members[0]]
        axes = np.column_stack([first.fast_axis, first.slow_axis, first.normal])
        pivot = np.mean([middle(panels[i]) for i in members], axis=0)
        rotation = Rotation.from_rotvec(axes @ turn, degrees=True)
        for i in members:
            panels[i] = _moved(panels[i], rotation, pivot, axes @ move)
    tree = None if detector.hierarchy is None else _recentred(detector.hierarchy, panels)
    return Detector(tuple(panels), tree)


def _draw(sizes: tuple[float, float, float], n: int, rng: np.random.Generator) -> Floats:
    """Return (n, 3) normal numbers whose root mean squares are exactly ``sizes``, so that a small sample is as bad as asked."""
    numbers = rng.standard_normal((n, 3))
    return np.asarray(numbers / np.sqrt(np.mean(numbers**2, axis=0)) * sizes, dtype=np.float64)


def _moved(panel: Panel, rotation: Rotation, pivot: Floats, move: Floats) -> Panel:
    return replace(
        panel,
        origin=as_vector(rotation.apply(np.asarray(panel.origin) - pivot) + pivot + move),
        fast_axis=as_vector(rotation.apply(panel.fast_axis)),
        slow_axis=as_vector(rotation.apply(panel.slow_axis)),
    )


def _recentred(group: DetectorGroup, panels: list[Panel]) -> DetectorGroup:
    children = tuple(c if isinstance(c, int) else _recentred(c, panels) for c in group.children)
    return replace(group, children=children, origin=as_vector(np.mean([middle(panels[i]) for i in group.panels()], axis=0)))
