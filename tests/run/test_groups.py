"""Groups of lattices that are scaled together and merged apart: over shards, by table, wavelength, frame, run and column."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
import pytest

from tests.run.synthetic_shards import gathering, unit_of_shards, write_units
from xfelproc.algorithms.merging import Merge
from xfelproc.errors import ConfigError
from xfelproc.run.directory import RunDirectory
from xfelproc.run.exporting import export
from xfelproc.run.merging import FoundShards, MergeInput, merge_inputs
from xfelproc.run.target import MergingGroup
from xfelproc.simulation.observations import ObservationSimulator

pytestmark = pytest.mark.slow

N, UNIT = 100, 20


@pytest.fixture(scope="module")
def simulator() -> ObservationSimulator:
    return ObservationSimulator.of(d_min=3.2, reach=2.0, pump_fraction=0.4, pump_change=0.1, misset=0.003, wavelength_jitter=0.002)


@pytest.fixture(scope="module")
def run(simulator: ObservationSimulator, tmp_path_factory: pytest.TempPathFactory) -> MergeInput:
    def unit(first: int, last: int) -> Any:
        found = simulator.simulate(first, last)
        return unit_of_shards(first, found.table(), found.crystals.A, found.crystals.wavelength)

    folder = tmp_path_factory.mktemp("shards") / "run_a"
    made = write_units(folder, N, UNIT, unit)
    states = simulator.crystals(0, N).group
    rows = [f"run_1.h5,{i},{('dark', 'light')[state]}" for i, state in enumerate(states.tolist())]
    (folder / "groups.csv").write_text("\n".join(["source,frame,group", *sorted(rows, key=lambda row: "light" in row)]) + "\n")
    return made


def merged(folder: Path, inputs: list[MergeInput], groups: Mapping[str, Any], **execution: Any) -> dict[str, Any]:
    settings = Merge.model_validate({"n_shells": 5, "groups": dict(groups)})
    place = gathering(folder, **{"bucket_size": 20_000, "fold_size": 40, **execution})
    try:
        found = merge_inputs(place, FoundShards.of(inputs), settings, MergingGroup("P 43 21 2", False), folder / "merged")
    finally:
        place.driver.close()
        place.journal.close()
    assert found is not None
    return found


def table(run: MergeInput) -> dict[str, Any]:
    return {"by": "table", "table": str(run.run / "groups.csv")}


@pytest.fixture(scope="module")
def apart(run: MergeInput, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("apart")
    return merged(folder, [run], table(run)), folder / "merged"


def columns(path: Path) -> dict[str, np.ndarray]:
    mtz = gemmi.read_mtz_file(str(path))
    return {"hkl": mtz.make_miller_array()} | {c.label: np.array(c.array, dtype=np.float64) for c in mtz.columns[3:]}


def test_planted_differences_come_back_with_true_errors(
    apart: tuple[dict[str, Any], Path], simulator: ObservationSimulator
) -> None:
    record, folder = apart
    found, whole = columns(folder / "groups" / "difference_light-dark.mtz"), columns(folder / "merged.mtz")
    place = {tuple(h): i for i, h in enumerate(simulator.structure.hkl.tolist())}
    dark, light = simulator.structure.intensity.mean(axis=1)[:, [place[tuple(h)] for h in found["hkl"].tolist()]]
    row = {tuple(h): i for i, h in enumerate(whole["hkl"].tolist())}
    together = whole["IMEAN"][[row[tuple(h)] for h in found["hkl"].tolist()]]
    true = 0.6 * dark + 0.4 * light
    wanted = (light - dark) * np.sum(true * together) / np.sum(true * true)
    difference, sigma = found["DI"], found["SIGDI"]
    assert 0.9 < np.mean(((difference - wanted) / sigma) ** 2) < 1.1
    clear = np.abs(difference) > 3.0 * sigma
    assert np.count_nonzero(clear) > 200
    assert np.mean(np.sign(difference[clear]) == np.sign(wanted[clear])) > 0.99
    amplitude = np.sqrt(light) - np.sqrt(dark)
    assert np.corrcoef(found["WDF"] * found["DF"], amplitude)[0, 1] > 0.85
    assert found["DF"] == pytest.approx(found["F"] - found["FREF"], abs=1e-2)
    overall = record["differences"][0]["overall"]
    assert overall["cc_half"] > 0.5
    assert overall["chi2"] > 5.0
    assert 0.03 < overall["r_iso"] < 0.08
    assert overall["n_pairs"] == len(difference) == sum(s["n_pairs"] for s in record["differences"][0]["shells"])


def test_each_group_has_files_and_statistics(apart: tuple[dict[str, Any], Path], simulator: ObservationSimulator) -> None:
    record, folder = apart
    states = simulator.crystals(0, N).group
    assert [(g["name"], g["n_frames"], g["n_lattices"]) for g in record["groups"]] == [
        ("dark", int(np.sum(states == 0)), int(np.sum(states == 0))),
        ("light", int(np.sum(states == 1)), int(np.sum(states == 1))),
    ]
    assert sorted(record["group_files"]) == sorted(f"groups/{p.name}" for p in (folder / "groups").iterdir())
    whole = columns(folder / "merged.mtz")
    flags = {tuple(h): flag for h, flag in zip(whole["hkl"].tolist(), whole["FreeR_flag"], strict=True)}
    total = 0
    for group in record["groups"]:
        own = columns(folder / "groups" / f"merged_{group['name']}.mtz")
        assert [flags[tuple(h)] for h in own["hkl"].tolist()] == own["FreeR_flag"].tolist()
        assert group["overall"]["cc_half"] > 0.8
        assert "Merged lattices" in (folder / "groups" / f"table1_{group['name']}.txt").read_text()
        total += group["overall"]["n_observations"]
    assert total == record["overall"]["n_observations"]
    assert not record["warnings"]


def test_groups_are_exported(apart: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    record, folder = apart
    RunDirectory(folder.parent).write_json("merge.json", {"lineage": "", "empty": False, **record})
    (written,) = export(folder.parent, "mmcif", tmp_path / "light.cif", group="light")
    (block,) = gemmi.as_refln_blocks(gemmi.cif.read(str(written)))
    measured = np.isfinite(block.make_float_array("intensity_meas"))
    assert np.count_nonzero(measured) == record["groups"][1]["overall"]["n_unique"]
    (copied,) = export(folder.parent, "mtz", tmp_path / "dark.mtz", group="dark")
    assert copied.read_bytes() == (folder / "groups" / "merged_dark.mtz").read_bytes()
    (table,) = export(folder.parent, "table1", tmp_path / "dark.txt", group="dark")
    assert table.read_text() == (folder / "groups" / "table1_dark.txt").read_text()
    with pytest.raises(ConfigError, match=r"--group dim: .* \(it has dark, light\)"):
        export(folder.parent, "mtz", tmp_path / "dim.mtz", group="dim")
    with pytest.raises(ConfigError, match="leave --group out"):
        export(folder.parent, "mmcif-unmerged", tmp_path / "all.cif", group="dark")


def test_groups_do_not_change_the_whole(run: MergeInput, apart: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    plain = merged(tmp_path, [run], {})
    assert (tmp_path / "merged" / "merged.mtz").read_bytes() == (apart[1] / "merged.mtz").read_bytes()
    assert not (tmp_path / "merged" / "groups").exists()
    assert plain["groups"] == plain["differences"] == plain["group_files"] == ()


def test_any_driver_gives_the_same_bytes(run: MergeInput, apart: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    found = merged(tmp_path, [run], table(run), driver="pool", workers=2)
    assert json.dumps(found) == json.dumps(apart[0])
    for name in found["group_files"]:
        assert (tmp_path / "merged" / name).read_bytes() == (apart[1] / name).read_bytes()


def test_what_does_not_meet_is_told_and_the_rest_is_done(run: MergeInput, tmp_path: Path) -> None:
    lines = (run.run / "groups.csv").read_text().splitlines()[:-20]
    more = ["run_1.h5,5000,light", "other.h5,1,light", "other.h5,2,never"]
    (tmp_path / "groups.csv").write_text("\n".join([*lines, *more]))
    found = merged(tmp_path, [run], {"by": "table", "table": str(tmp_path / "groups.csv"), "reference": "never"})
    told = " | ".join(found["warnings"])
    assert "3 of 83 rows are of no frame of these runs, the first in line 82: run_1.h5 frame 5000" in told
    assert "says nothing of 20 of 100 frames: in no group" in told
    assert "group never: no frame of these runs is in it: not merged" in told
    assert "group never, to which the others are compared, has no merged data: no differences" in told
    assert found["differences"] == ()
    assert (tmp_path / "merged" / "groups" / "merged_light.mtz").is_file()


def test_bins_of_wavelength_over_shards(run: MergeInput, simulator: ObservationSimulator, tmp_path: Path) -> None:
    few = replace(run, n_units=2)
    asked = {"by": "wavelength", "bins": 2, "differences": "all", "scale_differences": True}
    found = merged(tmp_path, [few], asked)
    assert [group["n_lattices"] for group in found["groups"]] == [UNIT, UNIT]
    wavelength = simulator.crystals(0, 2 * UNIT).wavelength
    assert found["groups"][0]["name"].startswith(f"{wavelength.min():.7g}-")
    assert [g["wavelength"] for g in found["groups"]] == pytest.approx([half.mean() for half in np.split(np.sort(wavelength), 2)])
    (difference,) = found["differences"]
    assert (difference["group"], difference["reference"]) == (found["groups"][1]["name"], found["groups"][0]["name"])
    assert 0.0 < abs(difference["log_scale"]) < 0.2
