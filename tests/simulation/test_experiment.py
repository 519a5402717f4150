from __future__ import annotations

from pathlib import Path

import gemmi
import h5py
import numpy as np
import nxmx
import pytest
import typer
from typer.testing import CliRunner

from xfelproc.cli.simulate import simulate as command
from xfelproc.errors import OutputError
from xfelproc.models.conventions import FLIP_XZ
from xfelproc.simulation import SimulationSettings, Simulator, preset, simulate
from xfelproc.simulation.crystal import given_intensities
from xfelproc.simulation.settings import CrystalSettings, DetectorSettings


def tiled(**changes: object) -> SimulationSettings:
    detector = DetectorSettings(layout="tiles", size=(60, 40), pixel_size=0.8, distance=110.0)
    return SimulationSettings(**{"frames": 4, "hit_fraction": 0.7, "seed": 3, "detector": detector, **changes})  # type: ignore[arg-type]


def test_files_hold_frames_and_truth(tmp_path: Path) -> None:
    settings = tiled()
    run = simulate(settings, tmp_path / "out")
    with h5py.File(run.frames) as file, h5py.File(run.truth) as truth:
        data = file["entry/data/data"]
        assert data.dtype == np.uint16
        assert data.chunks == (1, 160, 120)
        simulator = Simulator(settings)
        for index in range(4):
            counts, shot = simulator.frame(index)
            np.testing.assert_array_equal(data[index], simulator.layout.assemble(counts))
            assert file["entry/instrument/beam/incident_wavelength"][index] == shot.wavelength
            rows = np.flatnonzero(truth["lattice/frame"][()] == index)
            assert len(rows) == truth["n_lattices"][index] == len(shot.crystals)
            for row, crystal in zip(rows, shot.crystals, strict=True):
                np.testing.assert_array_equal(truth["lattice/A"][row], crystal.A)
        assert np.all(data[0][file["entry/instrument/detector/pixel_mask"][()] > 0] == 65535)
    assert run.n_hits == sum(len(Simulator(settings).frame(i)[1].crystals) > 0 for i in range(4))


def test_nexus_describes_the_panels(tmp_path: Path) -> None:
    settings = tiled(frames=1)
    run = simulate(settings, tmp_path)
    with h5py.File(run.frames) as file:
        detector = nxmx.NXmx(file).entries[0].instruments[0].detectors[0]
        panels = Simulator(settings).layout.detector.panels
        assert len(detector.modules) == len(panels)
        for module, panel in zip(detector.modules, panels, strict=True):
            chain = nxmx.get_dependency_chain(module.fast_pixel_direction)
            moves = [np.asarray(axis.vector) * float(np.squeeze(axis[()].to("mm").magnitude)) for axis in chain[1:]]
            origin = np.sum(moves, axis=0)
            np.testing.assert_allclose(FLIP_XZ @ origin, panel.origin, atol=1e-9)
            np.testing.assert_allclose(FLIP_XZ @ module.fast_pixel_direction.vector, panel.fast_axis, atol=1e-12)
            np.testing.assert_allclose(FLIP_XZ @ module.slow_pixel_direction.vector, panel.slow_axis, atol=1e-12)


def test_geometry_file_describes_the_panels(tmp_path: Path) -> None:
    settings = tiled(frames=1, centre_error=0.25)
    run = simulate(settings, tmp_path)
    values = dict(line.split(" = ") for line in run.geometry.read_text().splitlines() if " = " in line)
    with h5py.File(run.truth) as truth:
        shift = truth["detector_shift"][()]
    volume = gemmi.UnitCell(*settings.crystal.cell).volume
    assert np.linalg.norm(shift) == pytest.approx(0.25 * 1.305 * 110.0 / np.cbrt(volume))
    panel = Simulator(settings).layout.detector.panels[3]
    corner = FLIP_XZ @ np.subtract(panel.origin, shift) / 0.8
    assert float(values["p3/corner_x"]) == pytest.approx(corner[0], abs=1e-5)
    assert float(values["p3/corner_y"]) == pytest.approx(corner[1], abs=1e-5)
    assert float(values["clen"]) + float(values["p3/coffset"]) == pytest.approx(-panel.origin[2] / 1000)


def test_job_and_cell_carry_the_error(tmp_path: Path) -> None:
    run = simulate(tiled(frames=1, cell_error=0.01), tmp_path)
    assert "cell = [79.8910, 79.8910, 38.3800, 90.0000, 90.0000, 90.0000]" in run.job.read_text()
    assert "a = 79.89100 A" in run.cell.read_text()
    assert "cell" not in simulate(tiled(frames=1, give_cell=False), tmp_path).job.read_text()


def test_given_intensities(tmp_path: Path) -> None:
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup, mtz.cell = gemmi.SpaceGroup("P 43 21 2"), gemmi.UnitCell(79.1, 79.1, 38, 90, 90, 90)
    mtz.add_dataset("x")
    mtz.add_column("FP", "F")
    mtz.set_data(np.array([[4, 1, 2, 3.0], [5, 2, 1, np.nan]], dtype=np.float32))
    mtz.write_to_file(str(tmp_path / "x.mtz"))
    found = given_intensities(CrystalSettings(), tmp_path / "x.mtz")
    np.testing.assert_array_equal(found.hkl, [[4, 1, 2]])
    np.testing.assert_allclose(found.values, [9.0])


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        simulate(preset("blank", frames=1), tmp_path / "file" / "out")


def test_command(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, ["blank", "--frames", "1", "--seed", "4", "-o", str(tmp_path / "o")])
    assert result.exit_code == 0, result.output
    assert "1 frames, 0 of them hits" in result.output
    assert (tmp_path / "o" / "job.toml").exists()
