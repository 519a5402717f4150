"""Exports of merged data of a folder that holds no more than these."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
import pytest

from tests.algorithms.downstream.wilson_data import simulated
from xfelproc.algorithms.merging.settings import Merge
from xfelproc.errors import ConfigError
from xfelproc.io.exchange.mtz import MtzHeader
from xfelproc.run.directory import RunDirectory
from xfelproc.run.downstream import finish, write_table_one
from xfelproc.run.exporting import export

CELL = (60.0, 60.0, 70.0, 90.0, 90.0, 120.0)
SHELL: dict[str, Any] = {"d_max": 30.0, "d_min": 4.0, "n_unique": 2376, "n_observations": 23760, "n_possible": 2400}
SHELL |= {"completeness": 0.99, "multiplicity": 10.0, "i_over_sigma": 12.0, "cc_half": 0.998, "cc_star": float("nan")}
SHELL |= {"r_split": 0.05, "r_meas": -1.0, "r_pim": float("nan"), "r_merge": 0.1}


@pytest.fixture(scope="module", params=["run", "group"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    directory = RunDirectory(path)
    for made in (directory.merged, directory.gather):
        made.mkdir(parents=True)
    data = simulated(CELL, "P 3", d_min=5.0)
    found = finish(data.merged, MtzHeader(CELL, "P 3", 1.25), Merge(), directory.merged)
    record: dict[str, Any] = {"space_group": "P 3", "cell": list(CELL), "n_lattices_used": 200, "title": "a title"}
    record = found.added_to({**record, "overall": SHELL, "shells": [SHELL], "warnings": [], "empty": False})
    write_table_one(record, [], directory.merged)
    if request.param == "run":
        directory.write_json("merge.json", record)
    else:
        directory.write_json("group.json", {"lineage": "x", "found": record})
    return path


def test_every_format_is_written(folder: Path, tmp_path: Path) -> None:
    names = {"mtz": "a.mtz", "mtz-halves": "a.mtz", "mmcif": "a.cif", "hkl": "a.hkl", "hkl-halves": "a.hkl", "table1": "a.txt"}
    written = [path.name for to, name in names.items() for path in export(folder, to, tmp_path / name)]
    assert written == ["a.mtz", "a_1.mtz", "a_2.mtz", "a.cif", "a.hkl", "a.hkl1", "a.hkl2", "a.txt"]
    assert (tmp_path / "a.mtz").read_bytes() == (folder / "merged" / "merged.mtz").read_bytes()
    whole, one = (gemmi.read_mtz_file(str(tmp_path / name)) for name in ("a.mtz", "a_1.mtz"))
    assert one.title == "a title"
    np.testing.assert_array_equal(np.array(one.column_with_label("FreeR_flag")), np.array(whole.column_with_label("FreeR_flag")))
    block = gemmi.cif.read(str(tmp_path / "a.cif")).sole_block()
    assert block.find_value("_reflns.pdbx_R_split") == "0.0500"
    assert float(block.find_value("_reflns.B_iso_Wilson_estimate")) == pytest.approx(25.0, abs=15.0)
    assert (tmp_path / "a.hkl1").read_text().splitlines()[1] == "Symmetry: -3_H"
    assert (tmp_path / "a.txt").read_text() == (folder / "merged" / "table1.txt").read_text()
    again = [path.read_bytes() for path in export(folder, "mmcif", tmp_path / "b.cif")]
    assert again == [(tmp_path / "a.cif").read_bytes()]


def test_figures_are_json_that_everyone_reads(folder: Path, tmp_path: Path) -> None:
    (path,) = export(folder, "table1", tmp_path / "table1.json")
    found = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found["overall"]["r_pim"] is None
    assert found["downstream"]["free"]["from"] is None
    assert {"name": "Wavelength (Å)", "overall": "1.25000", "outermost": ""} in found["table_one"]


def test_a_folder_without_merged_data_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing is merged yet"):
        export(tmp_path, "mmcif", tmp_path / "a.cif")
    with pytest.raises(ConfigError, match="known: mtz, mtz-halves, mmcif, mmcif-unmerged"):
        export(tmp_path, "pdf", tmp_path / "a.pdf")
