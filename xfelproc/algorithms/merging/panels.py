"""Parts of the detector whose observations are not merged: panels, and the edges of all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.settings import Merge
from xfelproc.errors import ConfigError
from xfelproc.models.experiment import Detector
from xfelproc.models.tables import ReflectionTable


@dataclass(frozen=True)
class PanelLimits:
    """Panels left out, and how far (px) from the edges of panels of some sizes (fast, slow) an observation must be."""

    excluded: tuple[int, ...] = ()
    edge: float = 0.0
    sizes: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, settings: Merge, detector: Detector | None) -> Self:
        """Return the limits that the settings ask for.

        Raises
        ------
        ConfigError
            If a panel is not there, or there is no detector and one is needed.
        """
        if detector is None:
            numbers = tuple(panel for panel in settings.exclude_panels if isinstance(panel, int))
            if settings.panel_edge or len(numbers) < len(settings.exclude_panels):
                raise ConfigError("merge.panel_edge and names in merge.exclude_panels need a detector, which is not known here")
            return cls(numbers)
        names = {panel.name: number for number, panel in enumerate(detector.panels)}
        excluded = tuple(_number(panel, names) for panel in settings.exclude_panels)
        sizes = tuple(panel.image_size for panel in detector.panels) if settings.panel_edge else ()
        return cls(excluded, settings.panel_edge, sizes)

    def taken(self, reflections: ReflectionTable, rows: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which of the rows are on panels left out, and which are near an edge, (n,) each.

        Raises
        ------
        ConfigError
            If an observation is on a panel that the detector does not have.
        """
        panel = reflections["panel"][rows]
        outside, near = np.isin(panel, self.excluded), np.zeros(len(rows), dtype=bool)
        if self.edge and len(rows):
            if panel.max() >= len(self.sizes):
                raise ConfigError(
                    f"merge.panel_edge: there is an observation on panel {panel.max()}, and the detector has {len(self.sizes)}:"
                    " runs of different detectors cannot be merged with it"
                )
            size = np.array(self.sizes, dtype=np.float64)[panel]
            for axis, name in enumerate(("fast", "slow")):
                place = reflections[name][rows]
                near |= (place < self.edge) | (place > size[:, axis] - self.edge)
        return outside, near & ~outside


EVERYWHERE = PanelLimits()


def _number(panel: int | str, names: dict[str, int]) -> int:
    if isinstance(panel, int):
        if not 0 <= panel < len(names):
            raise ConfigError(f"merge.exclude_panels: there is no panel {panel}: the detector has {len(names)}, counted from 0")
        return panel
    if panel not in names:
        known = ", ".join(list(names)[:8])
        raise ConfigError(f"merge.exclude_panels: there is no panel {panel!r}: they are called {known}{', ...' * (len(names) > 8)}")
    return names[panel]
