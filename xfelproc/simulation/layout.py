"""Where the pixels are: detector layouts, and how their panels lie in the stored array."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from xfelproc.models.experiment import Detector, DetectorGroup, Panel, as_vector
from xfelproc.simulation.settings import DetectorSettings

Floats = NDArray[np.float64]
_ASIC = (194, 185)


@dataclass(frozen=True)
class Layout:
    """A detector of equal panels; panel i is stored at ``slots[i]`` = (fast0, slow0) of an array of ``shape`` (slow, fast)."""

    detector: Detector
    slots: tuple[tuple[int, int], ...]
    shape: tuple[int, int]

    @property
    def geometry(self) -> Floats:
        """(panel, 3, 3): rows are the first pixel's corner and the steps of one pixel along fast and slow, mm."""
        rows = [
            [p.origin, np.multiply(p.fast_axis, p.pixel_size[0]), np.multiply(p.slow_axis, p.pixel_size[1])]
            for p in self.detector.panels
        ]
        return np.array(rows, dtype=np.float64)

    def assemble(self, stack: NDArray[np.uint16]) -> NDArray[np.uint16]:
        """Return a stack (panel, slow, fast) as the array in which it is stored."""
        if len(stack) == 1:
            only: NDArray[np.uint16] = stack[0]
            return only
        stored: NDArray[np.uint16] = np.zeros(self.shape, dtype=stack.dtype)
        for panel, (fast, slow) in zip(stack, self.slots, strict=True):
            stored[slow : slow + panel.shape[0], fast : fast + panel.shape[1]] = panel
        return stored


def make_layout(settings: DetectorSettings) -> Layout:
    """Return the detector that the settings describe, seen along the beam: fast runs to the right, slow downwards."""
    if settings.layout == "single":
        n_fast, n_slow = settings.size
        corner = (-0.5 * n_fast, -0.5 * n_slow)
        return Layout(Detector((_panel(settings, "p0", settings.size, corner, 0.0, 0.0),)), ((0, 0),), (n_slow, n_fast))
    return {"tiles": _tiles, "cspad": _cspad, "jungfrau": _jungfrau}[settings.layout](settings)


def _panel(
    settings: DetectorSettings, name: str, size: tuple[int, int], corner: tuple[float, float], turn: float, depth: float
) -> Panel:
    """Return a panel whose first corner is at ``corner`` (pixels right and down of the middle), turned by ``turn`` degrees.

    It turns clockwise. ``depth`` (mm) is how much farther than the nominal distance it stands.
    """
    right, down = np.array([1.0, 0.0, 0.0]), np.array([0.0, -1.0, 0.0])
    rotation = Rotation.from_rotvec([0.0, 0.0, -turn], degrees=True)
    place = np.subtract(corner, settings.beam_offset) * settings.pixel_size
    origin = place[0] * right + place[1] * down + np.array([0.0, 0.0, -settings.distance - depth])
    return Panel(
        name=name,
        fast_axis=as_vector(rotation.apply(right)),
        slow_axis=as_vector(rotation.apply(down)),
        origin=as_vector(origin),
        pixel_size=(settings.pixel_size, settings.pixel_size),
        image_size=size,
        trusted_range=(0.0, float(settings.saturation - 1)),
    )


def _tiles(settings: DetectorSettings) -> Layout:
    """2 x 4 tiles with gaps, each turned by up to 0.1° and standing up to 0.1 mm out of the plane."""
    n_fast, n_slow = settings.size
    rng = np.random.default_rng(2)  # the misplacement belongs to this detector, not to a run
    panels: list[Panel] = []
    slots: list[tuple[int, int]] = []
    for row in range(4):
        for column in range(2):
            corner = ((column - 1) * (n_fast + 10) + 5, (row - 2) * (n_slow + 10) + 5)
            moved = (corner[0] + rng.uniform(-1, 1), corner[1] + rng.uniform(-1, 1))
            turn, depth = rng.uniform(-0.1, 0.1, 2)
            panels.append(_panel(settings, f"p{len(panels)}", settings.size, moved, float(turn), float(depth)))
            slots.append((column * n_fast, row * n_slow))
    return Layout(Detector(tuple(panels)), tuple(slots), (4 * n_slow, 2 * n_fast))


def _cspad(settings: DetectorSettings) -> Layout:
    """Four quadrants turned about the beam, each of eight sensors in four pairs turned by 90°, each sensor of two ASICs."""
    n_fast, n_slow = _ASIC
    panels: list[Panel] = []
    slots: list[tuple[int, int]] = []
    rng = np.random.default_rng(3)  # as above
    for quadrant in range(4):
        for sensor in range(8):
            pair, second = divmod(sensor, 2)
            column, row = pair % 2, pair // 2
            turn = 90.0 * ((column + row) % 2)
            error = rng.uniform(-0.1, 0.1)
            for asic in range(2):
                # corner in the pair's 420 x 420 square, before its turn about the square's middle
                local = np.array([asic * (n_fast + 3.0) - 195.5, second * (n_slow + 25.0) - 197.5])
                middle = np.array([245.0 + 420.0 * column, 245.0 + 420.0 * row])
                corner = _turn(_turn(local, turn + error) + middle + np.array([-20.0, 20.0]), 90.0 * quadrant)
                name = f"q{quadrant}a{2 * sensor + asic}"
                at = (float(corner[0]), float(corner[1]))
                panels.append(_panel(settings, name, _ASIC, at, turn + error + 90.0 * quadrant, 0.0))
                slots.append((quadrant * 2 * n_fast + asic * n_fast, sensor * n_slow))
    quadrants = [[(f"q{q}s{s}", [16 * q + 2 * s, 16 * q + 2 * s + 1]) for s in range(8)] for q in range(4)]
    tree = tuple(_group(f"q{q}", tuple(_group(name, tuple(m), panels) for name, m in quadrants[q]), panels) for q in range(4))
    return Layout(Detector(tuple(panels), _group("detector", tree, panels)), tuple(slots), (8 * n_slow, 8 * n_fast))


def _jungfrau(settings: DetectorSettings) -> Layout:
    """Four quadrants of two modules each around a square hole; modules of a quadrant are 36 pixels apart, quadrants 8."""
    n_fast, n_slow = settings.size
    height, hole, gap = 2 * n_slow + 36, 16, 8
    corners = (
        (hole - n_fast, -hole - height),
        (hole + gap, hole - height),
        (-hole, hole + gap),
        (-hole - gap - n_fast, gap - hole),
    )
    panels: list[Panel] = []
    slots: list[tuple[int, int]] = []
    for quadrant, (right, down) in enumerate(corners):
        for module in range(2):
            corner = (float(right), float(down + module * (n_slow + 36)))
            panels.append(_panel(settings, f"q{quadrant}m{module}", settings.size, corner, 0.0, 0.0))
            slots.append((0, (2 * quadrant + module) * n_slow))
    tree = tuple(_group(f"q{q}", (2 * q, 2 * q + 1), panels) for q in range(4))
    return Layout(Detector(tuple(panels), _group("detector", tree, panels)), tuple(slots), (8 * n_slow, n_fast))


def _group(name: str, children: tuple[DetectorGroup | int, ...], panels: list[Panel]) -> DetectorGroup:
    """Return a part of the detector whose frame is at the mean of its panels' middles, along the laboratory's axes."""
    group = DetectorGroup(name, children)
    return DetectorGroup(name, children, origin=as_vector(np.mean([middle(panels[i]) for i in group.panels()], axis=0)))


def middle(panel: Panel) -> Floats:
    """Return the middle of a panel, mm."""
    half = 0.5 * np.multiply(panel.image_size, panel.pixel_size)
    return np.asarray(
        panel.origin + half[0] * np.asarray(panel.fast_axis) + half[1] * np.asarray(panel.slow_axis), dtype=np.float64
    )


def _turn(point: Floats, degrees: float) -> Floats:
    """Turn (right, down) clockwise as seen along the beam."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([c * point[0] - s * point[1], s * point[0] + c * point[1]])
