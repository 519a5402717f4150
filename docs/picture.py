"""Draw docs/frame.png: a simulated still with its spots and predictions.

python docs/picture.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from xfelproc.algorithms.calibration import Calibrate
from xfelproc.algorithms.indexing import Index
from xfelproc.algorithms.integration import Integrate
from xfelproc.algorithms.refinement import Refine
from xfelproc.algorithms.spotfinding import FindSpots
from xfelproc.io.sources import open_source
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.models.frames import CellTarget
from xfelproc.simulation import preset, simulate
from xfelproc.stages.stills import Stills, process


def main() -> None:
    """Simulate a few frames, process them, and draw the one with most spots."""
    with tempfile.TemporaryDirectory() as folder:
        settings = preset("demo", frames=6)
        run = simulate(settings, Path(folder))
        source = open_source(run.frames, SourceSettings(geometry=run.geometry))
        stills = Stills(
            Calibrate(),
            FindSpots(),
            Index(),
            Refine(),
            Integrate(),
            CellTarget(settings.crystal.cell, settings.crystal.space_group),
        )
        constants = stills.calibrate.constants(source.experiment(0).detector, source.static_mask())
        processed = [process(stills, source.read(index), constants)[0] for index in range(source.n_frames)]
        best = max(range(len(processed)), key=lambda index: len(processed[index].spots))
        pixels = source.read(best).pixels[0].astype(np.float64)
    result = processed[best]
    assert result.integration is not None
    predicted, spots = result.integration.reflections, result.spots
    figure, axes = plt.subplots(1, 2, figsize=(12, 6), layout="constrained")
    low, high = np.percentile(pixels, [2, 99.7])
    for axis in axes:
        axis.imshow(
            pixels, cmap="gray_r", vmin=low, vmax=high, interpolation="nearest", extent=(0, pixels.shape[1], pixels.shape[0], 0)
        )
        axis.set_xticks([])
        axis.set_yticks([])
    side = 260
    axes[1].plot(predicted["fast"], predicted["slow"], "s", mfc="none", mec="#2563eb", ms=13, label="predicted")
    axes[1].plot(spots["fast"], spots["slow"], "o", mfc="none", mec="#dc2626", ms=10, label="spots")
    corner = np.array(pixels.shape[::-1]) // 2 - np.array([side // 4, side])
    axes[1].set_xlim(corner[0], corner[0] + side)
    axes[1].set_ylim(corner[1] + side, corner[1])
    axes[1].legend(loc="upper right")
    axes[0].add_patch(plt.Rectangle(tuple(corner), side, side, fill=False, ec="#2563eb"))
    figure.savefig(Path(__file__).with_name("frame.png"), dpi=75)


if __name__ == "__main__":
    main()
