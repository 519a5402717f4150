from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import gemmi
import numpy as np
import pytest

from tests.integration.conftest import ROOT, environment, experiment, undisturbed, xfelproc
from xfelproc.io.sources import SourceSettings, open_source
from xfelproc.run.campaign.settings import load_campaign
from xfelproc.run.config import load_config

__all__ = ["experiment", "undisturbed"]

pytestmark = pytest.mark.slow


def test_help_needs_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv = ['xfelproc', '--help']\n"
        "from xfelproc.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('numpy', 'numba', 'h5py', 'scipy', 'pydantic', 'plotly', 'zarr') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")
    for command in ("demo", "inspect", "init", "check", "run", "status", "report", "export", "consolidate", "simulate"):
        assert command in done.stdout


def test_init_check(tmp_path: Path, experiment: Path) -> None:
    path = tmp_path / "job.toml"
    assert xfelproc("init", path).code == 0
    assert "files" in tomllib.loads(path.read_text())["input"]
    assert xfelproc("init", path).code == 2
    result = xfelproc("check", path, "--set", f'input.files=["{experiment}/frames.h5"]')
    assert result.code == 0
    assert "24 frames in 3 work units" in result.output


CAMPAIGN = ROOT / "jobs" / "archive.toml"


@pytest.mark.parametrize("path", sorted({*(ROOT / "jobs").glob("*.toml")} - {CAMPAIGN}), ids=lambda path: path.name)
def test_jobs_to_copy_are_valid(path: Path) -> None:
    load_config(path)


def test_campaign_to_copy_is_valid() -> None:
    settings = load_campaign(CAMPAIGN)
    assert settings.base is not None
    assert settings.base.is_file()


def test_status(undisturbed: Path, tmp_path: Path) -> None:
    status = json.loads(xfelproc("status", undisturbed, "--json").output)
    assert status["state"] == "done"
    assert status["frames"] == {"done": 24, "total": 24}
    assert status["merged"]["n_unique"] > 500
    assert xfelproc("status", tmp_path).code == 2


def test_export_mtz(undisturbed: Path, tmp_path: Path) -> None:
    assert xfelproc("export", undisturbed, "--to", "mtz", "-o", tmp_path / "x.mtz").code == 0
    assert (tmp_path / "x.mtz").read_bytes() == (undisturbed / "merged" / "merged.mtz").read_bytes()
    result = xfelproc("export", undisturbed, "--to", "pdf", "-o", tmp_path / "x.pdf")
    assert result.code == 2
    assert "known: mtz" in result.output


def test_export_of_merged_data(undisturbed: Path, tmp_path: Path) -> None:
    wanted = {"mmcif-unmerged": "x.cif", "hkl-halves": "x.hkl", "table1": "x.json"}
    written = "".join(xfelproc("export", undisturbed, "--to", to, "-o", tmp_path / name).output for to, name in wanted.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.cif", "x.hkl1", "x.hkl2", "x.json"], written
    merged = gemmi.read_mtz_file(str(undisturbed / "merged" / "merged.mtz"))
    assert {"F", "SIGF", "F(+)", "DANO"} <= set(merged.column_labels())
    block, unmerged = gemmi.as_refln_blocks(gemmi.cif.read(str(tmp_path / "x.cif")))
    assert len(block.make_miller_array()) == merged.nreflections
    assert block.block.find_value("_pdbx_serial_crystallography_data_reduction.frames_total") == "24"
    intensities = gemmi.Intensities()
    intensities.import_refln_block(unmerged, gemmi.DataType.Unmerged)
    intensities.merge_in_place(gemmi.DataType.Mean)
    np.testing.assert_array_equal(intensities.miller_array, merged.make_miller_array())
    np.testing.assert_allclose(intensities.value_array, np.array(merged.column_with_label("IMEAN")), rtol=1e-3, atol=0.2)
    assert (tmp_path / "x.hkl1").read_text().splitlines()[1] == "Symmetry: 4/mmm"
    table = json.loads((tmp_path / "x.json").read_text())
    assert {"name": "Frames", "overall": "24", "outermost": ""} in table["table_one"]
    assert "Unique reflections" in (undisturbed / "merged" / "table1.txt").read_text()


def test_export_stream(undisturbed: Path, tmp_path: Path) -> None:
    assert xfelproc("export", undisturbed, "--to", "stream", "-o", tmp_path / "x.stream").code == 0
    text = (tmp_path / "x.stream").read_text()
    assert text.count("----- Begin chunk -----") == 24
    assert text.count("--- Begin crystal") == 17
    assert "Event: //23" in text


@pytest.mark.parametrize(("to", "name"), [("geom", "x.geom"), ("dials", "x.expt")])
def test_exported_geometry_reads_back(undisturbed: Path, experiment: Path, tmp_path: Path, to: str, name: str) -> None:
    assert xfelproc("export", undisturbed, "--to", to, "-o", tmp_path / name).code == 0
    frames = experiment / "frames.h5"
    with open_source(frames, SourceSettings()) as source:
        panel = source.experiment(0).detector.panels[0]
    with open_source(frames, SourceSettings(geometry=tmp_path / name)) as source:
        again = source.experiment(0).detector.panels[0]
    np.testing.assert_allclose([panel.origin, panel.fast_axis, panel.slow_axis], [again.origin, again.fast_axis, again.slow_axis])


def test_report(undisturbed: Path, tmp_path: Path) -> None:
    run = shutil.copytree(undisturbed, tmp_path / "run")
    assert xfelproc("report", run, "--nonsense").code == 2
    assert xfelproc("report", run).code == 0


def test_demo(tmp_path: Path) -> None:
    result = xfelproc("demo", "-o", tmp_path / "demo", "-n", 24)
    assert result.code == 0, result.output
    assert "merged.mtz" in result.output
    report = tmp_path / "demo" / "run" / "report.html"
    assert report.stat().st_size > 100_000
