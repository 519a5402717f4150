"""A run whose recorded geometry is wrong, by the real command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.integration.conftest import xfelproc
from xfelproc.io.exchange.dials_expt import read_expt
from xfelproc.io.exchange.geom import read_geom
from xfelproc.io.exchange.nexus_read import read_nexus
from xfelproc.io.shards import read_frames, shard_path
from xfelproc.models.experiment import Detector
from xfelproc.simulation import preset, simulate

DETECTOR = {"layout": "tiles", "size": (230, 170), "pixel_size": 0.2, "distance": 120.0}
ERROR = {"panels": {"in_plane": 0.8, "out_of_plane": 0.5, "rotation": 0.1, "tilt": 0.1}, "centre": (0.6, -0.4)}


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of shots on eight tiles that are recorded where they are not."""
    folder = tmp_path_factory.mktemp("shots")
    simulate(preset("single", frames=40, photons=1500.0, detector=DETECTOR, geometry_error=ERROR), folder)
    return folder


def indexed(run: Path, stage: str) -> int:
    """Return how many frames of the shards of a stage have a lattice."""
    units = len(list((run / "shards" / stage).rglob("*.h5")))
    return sum(int(np.sum(read_frames(shard_path(run, stage, unit))["n_lattices"] > 0)) for unit in range(units))


def in_plane_error(detector: Detector, true: Detector) -> float:
    """Return how far panels are from their true places (px, rms), but for shift, turn about the beam and scale."""
    found, known = (
        {
            p.name.removeprefix("module_"): np.array(p.origin) + 23.0 * np.array(p.fast_axis) + 17.0 * np.array(p.slow_axis)
            for p in d.panels
        }
        for d in (detector, true)
    )
    place = np.array([known[name][:2] for name in known])
    off = np.array([found[name][:2] for name in known]) - place
    x, y = place.T
    one, none = np.ones(8), np.zeros(8)
    modes = np.column_stack([np.r_[one, none], np.r_[none, one], np.r_[-y, x], np.r_[x, y]])
    left = off.T.ravel() - modes @ np.linalg.lstsq(modes, off.T.ravel(), rcond=None)[0]
    return float(np.sqrt(np.mean(left**2) * 2) / 0.2)


def test_panels_are_put_where_they_are_and_the_run_goes_on_with_it(shots: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = xfelproc("run", shots / "job.toml", "-o", run, "--driver", "inline", "--set", "report.enabled=false")
    assert result.code == 0, result.output
    true, recorded = read_geom(shots / "true.geom").detector(), read_geom(shots / "frames.geom").detector()
    assert in_plane_error(recorded, true) > 0.7
    geometry = run / "gather" / "geometry.geom"
    written = {
        ".geom": read_geom(geometry).detector(),
        ".expt": read_expt(geometry.with_suffix(".expt"))[0].detector,
        ".nxs": read_nexus(geometry.with_suffix(".nxs")).detector(),
    }
    for suffix, detector in written.items():
        assert in_plane_error(detector, true) < 0.15, suffix
    record = json.loads((run / "gather" / "metrology.json").read_text(encoding="utf-8"))
    assert record["stage"] == "reprocess"
    assert indexed(run, "reprocess") >= max(38, indexed(run, "process"))
    assert (run / "merged" / "merged.mtz").is_file()
