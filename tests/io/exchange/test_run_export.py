from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from xfelproc.geometry.cells import b_matrix
from xfelproc.io.exchange.dials_expt import read_expt
from xfelproc.io.exchange.dials_refl import integrated_table, read_refl, refl_bytes
from xfelproc.io.exchange.dials_write import write_expt
from xfelproc.io.exchange.geom_write import geom_of
from xfelproc.io.exchange.run_export import dials_lattices, frame_chunk
from xfelproc.io.exchange.stream import StreamHeader, stream_text
from xfelproc.io.exchange.stream_reader import read_stream
from xfelproc.models.experiment import Beam, Detector, Experiment, Panel
from xfelproc.models.frames import FrameRef, UnitResult
from xfelproc.models.tables import FrameTable, IndexedTable, LatticeTable, ReflectionTable, SpotTable

CELL = (50.0, 60.0, 70.0, 90.0, 90.0, 90.0)


def experiment() -> Experiment:
    return Experiment(Beam(1.3), Detector((Panel("p", (1, 0, 0), (0, -1, 0), (-50, 50, -100), (0.1, 0.1), (1000, 1000)),)))


def unit() -> UnitResult:
    """Return two frames: a blank, then one with two lattices of two reflections each and three spots."""
    return UnitResult(
        frames=FrameTable(None, source=[0, 0], index=[6, 7], status=[1, 4], wavelength=[1.3, 1.3]),
        spots=SpotTable(
            None,
            frame=[1, 1, 1],
            fast=[400.0, 500.0, 600.0],
            slow=[300.0, 310.0, 320.0],
            var_fast=[0.1, 0.2, 0.3],
            var_slow=[0.4, 0.5, 0.6],
            d=[5.0, 4.0, 3.0],
        ),
        lattices=LatticeTable(
            None,
            frame=[1, 1],
            A=[b_matrix(CELL)] * 2,
            cell=[CELL] * 2,
            space_group=["P 21 21 21"] * 2,
            domain_size=[1000.0, 2000.0],
            d_min=[2.5, 3.0],
            shift=[[0.1, 0.0, 0.0], [0.0, 0.0, 0.0]],
        ),
        indexed=IndexedTable(None, lattice=[0, 1, 1], spot=[2, 1, 0], hkl=[[1, 2, 3], [2, 2, 2], [9, 9, 9]]),
        reflections=ReflectionTable(
            None,
            lattice=[0, 0, 1, 1],
            hkl=[[1, 2, 3], [1, 1, 1], [0, 1, 2], [2, 2, 2]],
            fast=[600.5, 100.0, 200.0, 500.5],
            slow=[320.5, 100.0, 200.0, 310.5],
            intensity=[10.0, 20.0, 30.0, 40.0],
            sigma=[1.0, 1.0, 1.0, 1.0],
            flags=[65, 1, 1, 65],
        ),
    )


def test_stream(tmp_path: Path) -> None:
    result = unit()
    chunks = [frame_chunk("x.h5", f"//{6 + row}", row + 1, experiment(), result, row) for row in range(2)]
    path = tmp_path / "x.stream"
    path.write_text("".join(stream_text(StreamHeader(geom_of(experiment())), chunks)))
    blank, hit = read_stream(path)
    assert (blank.hit, len(blank.peaks), len(blank.crystals)) == (False, 0, 0)
    assert (hit.hit, hit.event, len(hit.peaks)) == (True, "//7", 3)
    assert [c.reflections.intensity.tolist() for c in hit.crystals] == [[10.0, 20.0], [30.0, 40.0]]
    assert hit.crystals[0].shift == (-0.1, 0.0)
    assert hit.crystals[1].d_min == pytest.approx(3.0, rel=2e-3)


def test_dials(tmp_path: Path) -> None:
    result = unit()
    lattices = dials_lattices("x.h5", FrameRef(0, 7), experiment(), result, 1)
    assert not dials_lattices("x.h5", FrameRef(0, 6), experiment(), result, 0)
    write_expt([item.experiment for item in lattices], tmp_path / "x.expt")
    (tmp_path / "x.refl").write_bytes(refl_bytes(integrated_table(lattices)))
    experiments, table = read_expt(tmp_path / "x.expt"), read_refl(tmp_path / "x.refl")
    assert [e.identifier for e in experiments] == list(table.identifiers.values()) == ["0-7-0", "0-7-1"]
    assert experiments[0].detector.panels[0].origin[0] == pytest.approx(-49.9)
    assert experiments[1].detector.panels[0].origin[0] == pytest.approx(-50.0)
    observed = table.array("xyzobs.px.value")
    assert observed[0] == pytest.approx([600.0, 320.0, 0.5])
    assert observed[3] == pytest.approx([500.0, 310.0, 0.5])
    assert observed[1] == pytest.approx([100.0, 100.0, 0.5]), "no spot: the prediction, with variance 0"
    assert np.array_equal(table.array("xyzobs.px.variance")[:, 0] > 0, [True, False, False, True])
