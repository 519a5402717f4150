from __future__ import annotations

import numpy as np
import pytest

from xfelproc.simulation.layout import make_layout
from xfelproc.simulation.settings import DetectorSettings


def test_single_panel_meets_the_beam_where_it_says() -> None:
    settings = DetectorSettings(size=(100, 60), pixel_size=0.2, distance=50.0, beam_offset=(3.0, -2.0))
    corner, step_f, step_s = make_layout(settings).geometry[0]
    np.testing.assert_allclose(corner + (50 + 3.0) * step_f + (30 - 2.0) * step_s, (0, 0, -50.0), atol=1e-12)


@pytest.mark.parametrize("name", ["tiles", "cspad", "jungfrau"])
def test_panels_do_not_overlap(name: str) -> None:
    settings = DetectorSettings(layout=name, size=(50, 40), pixel_size=0.11)  # type: ignore[arg-type]
    layout = make_layout(settings)
    canvas = np.zeros((2400, 2400), dtype=int)
    for (corner, step_f, step_s), panel in zip(layout.geometry, layout.detector.panels, strict=True):
        np.testing.assert_allclose(np.dot(panel.fast_axis, panel.slow_axis), 0, atol=1e-12)
        fast, slow = np.meshgrid(np.arange(1, panel.image_size[0] - 1), np.arange(1, panel.image_size[1] - 1))
        place = corner[:2] + (fast[..., None] + 0.5) * step_f[:2] + (slow[..., None] + 0.5) * step_s[:2]
        pixel = np.unique(np.floor(place.reshape(-1, 2) / 0.11).astype(int) + 1200, axis=0)
        canvas[pixel[:, 0], pixel[:, 1]] += 1
    assert canvas.max() == 1
    assert canvas.sum() > 0.9 * sum(p.image_size[0] * p.image_size[1] for p in layout.detector.panels)


@pytest.mark.parametrize("name", ["single", "tiles", "cspad", "jungfrau"])
def test_assemble_puts_each_panel_in_its_slot(name: str) -> None:
    layout = make_layout(DetectorSettings(layout=name, size=(40, 30)))  # type: ignore[arg-type]
    stack = (
        np.zeros(layout.detector.stack_shape, dtype=np.uint16) + np.arange(1, len(layout.slots) + 1, dtype=np.uint16)[:, None, None]
    )
    stored = layout.assemble(stack)
    assert stored.shape == layout.shape
    assert stored.min() == 1
    for number, (fast, slow) in enumerate(layout.slots):
        assert stored[slow, fast] == number + 1


def test_hierarchies() -> None:
    for name, counts in (("cspad", (4, 8, 2)), ("jungfrau", (4, 2))):
        tree = make_layout(DetectorSettings(layout=name, size=(40, 30))).detector.hierarchy  # type: ignore[arg-type]
        assert tree is not None
        level = [tree]
        for count in counts:
            assert all(len(group.children) == count for group in level)
            level = [child for group in level for child in group.children if not isinstance(child, int)]
        assert sorted(tree.panels()) == list(range(int(np.prod(counts))))
