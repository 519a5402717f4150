from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.run.combine_runs import detector
from xfelproc.algorithms.metrology.state import LevelOutcome
from xfelproc.geometry.placement import placement_of
from xfelproc.io.atomic import make_folder
from xfelproc.io.nodes import write_node
from xfelproc.models.experiment import Beam, Detector, Experiment
from xfelproc.report.metrology import MetrologyData, section
from xfelproc.run.detector_tables import metrology_data
from xfelproc.run.directory import RunDirectory
from xfelproc.run.refining import result_path
from xfelproc.stages.metrology import packed_state

MOVED = detector().shifted((0.1, 0.0, 0.0))
CONFIG: Any = SimpleNamespace(section=lambda name: SimpleNamespace(enabled=True))


def record_of(stage: str) -> dict[str, Any]:
    done = {"number": 0, "lattices": 1200, "spots": 5000, "iterations": 7, "shift_px": 0.8, "converged": True, "why": ""}
    failed = done | {"number": 1, "converged": False, "why": "diverged"}
    places = {"before": placement_of(detector()), "after": placement_of(MOVED)}
    return {"stage": stage, "why": "enough", "rounds": [done, failed], **places}


def found(folder: Path, record: dict[str, Any] | None) -> tuple[MetrologyData, list[Detector]]:
    directory, asked = RunDirectory(folder), list[Detector]()
    make_folder(directory.gather)
    if record is not None:
        directory.write_json("metrology.json", record)

    def before(recorded: Detector) -> Any:
        asked.append(recorded)
        return np.ones((4, 4, 4, 11))

    sums = np.full((4, 4, 4, 11), 2.0)
    return metrology_data(CONFIG, directory, Experiment(Beam(1.3), MOVED), sums, before), asked


def test_a_run_without_metrology(tmp_path: Path) -> None:
    data, asked = found(tmp_path, None)
    assert (data.recorded, data.before, asked) == (None, None, [])


def test_a_geometry_that_stays(tmp_path: Path) -> None:
    data, asked = found(tmp_path, record_of("process"))
    assert (data.recorded, asked) == (None, [])
    assert data.notes[-1] == "The panels stay where they were recorded: enough."


@pytest.mark.parametrize("kept", [True, False])
def test_a_refined_geometry(tmp_path: Path, kept: bool) -> None:
    if kept:
        values = np.full((1, 6), 0.5)
        names, n = ("d",), np.array([4], np.int32)
        outcome = LevelOutcome(0, MOVED, names, n, n.astype(np.int64), np.zeros(1, bool), *[values] * 8, 1.0, (), True)
        path = result_path(tmp_path / "gather", 0)
        make_folder(path.parent)
        write_node(path, "", {"result": packed_state(SimpleNamespace(outcomes=(outcome,)))})
    data, (asked,) = found(tmp_path, record_of("reprocess"))
    assert np.allclose(asked.d_matrices, detector().d_matrices)
    assert (len(data.parameters), len(data.halves)) == ((6, 6) if kept else (0, 0))
    assert data.notes == [
        "Round 1: 1,200 lattices, 5,000 spots, 7 passes; panels moved by 0.800 px rms.",
        "Round 2: 1,200 lattices, 5,000 spots, 7 passes; not taken: diverged.",
        "It ended there: enough.",
    ]
    assert "Panels moved, without the motion of the whole (longest arrow: 0.0 µm)" in section(data)
