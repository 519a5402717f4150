"""Indexing ambiguity of shards: found, resolved, merged; simulated observations of crystals indexed in a setting at random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gemmi
import h5py
import numpy as np
import pytest

from tests.run.synthetic_shards import gathering, unit_of_shards, write_units
from xfelproc.algorithms.merging import Merge
from xfelproc.errors import ConfigError, DataError
from xfelproc.run.ambiguity import FILE, typical_cell
from xfelproc.run.merging import FoundShards, MergeInput, merge_inputs
from xfelproc.run.target import MergingGroup
from xfelproc.simulation.observations import ObservationSimulator

CELL = (60.0, 60.0, 40.0, 90.0, 90.0, 90.0)
FOUR = ("h,k,l", "-h,k,-l")
UNIT = 25


def simulator(**options: Any) -> ObservationSimulator:
    given = {"cell": CELL, "space_group": "P 4", "d_min": 3.5, "settings": FOUR, "reach": 1.5, "photons": 1000.0}
    return ObservationSimulator.of(**{**given, **options})


def make_run(folder: Path, simulated: ObservationSimulator, n: int = 75) -> MergeInput:
    def unit(first: int, last: int) -> Any:
        found = simulated.simulate(first, last)
        return unit_of_shards(first, found.table(), found.crystals.A, found.crystals.wavelength)

    return write_units(folder, n, UNIT, unit)


@pytest.fixture(scope="module")
def crystals() -> ObservationSimulator:
    return simulator()


@pytest.fixture(scope="module")
def run(crystals: ObservationSimulator, tmp_path_factory: pytest.TempPathFactory) -> MergeInput:
    return make_run(tmp_path_factory.mktemp("shards"), crystals)


def merged(folder: Path, run: MergeInput, group: str = "P 4", settings: Merge | None = None, **execution: Any) -> dict[str, Any]:
    place = gathering(folder, **execution)
    try:
        found = merge_inputs(place, FoundShards.of([run]), settings or Merge(), MergingGroup(group, False), folder / "merged")
    finally:
        place.driver.close()
        place.journal.close()
    assert found is not None
    assert not (folder / "gather" / "ambiguity").exists()
    return found


def lattices(folder: Path) -> dict[str, np.ndarray]:
    with h5py.File(folder / "merged" / FILE) as file:
        return {name: column[()] for name, column in file["lattices"].items()}


def test_one_lattice_is_merged_as_it_is(crystals: ObservationSimulator, tmp_path: Path) -> None:
    found = merged(tmp_path, make_run(tmp_path / "run", crystals, 1))
    assert found["n_lattices_used"] == 1
    assert "there is one lattice alone, merged as it was indexed" in found["warnings"][0]
    assert np.isnan(found["overall"]["cc_half"])


def share_right(crystals: ObservationSimulator, setting: np.ndarray) -> float:
    same = float(np.mean(crystals.simulate(0, len(setting)).crystals.setting == setting))
    return max(same, 1.0 - same)


def correlation(crystals: ObservationSimulator, path: Path) -> float:
    """Return the correlation of merged intensities to the true ones, or to those in the other setting."""
    mtz = gemmi.read_mtz_file(str(path))
    found = {tuple(h): v for h, v in zip(mtz.make_miller_array().tolist(), mtz.column_with_label("IMEAN").array, strict=True)}
    structure = crystals.structure
    asu, operations = gemmi.ReciprocalAsu(gemmi.SpaceGroup("P 4")), gemmi.SpaceGroup("P 4").operations()
    best = 0.0
    for sign in (1, -1):
        pairs = []
        for hkl, true in zip(structure.hkl.tolist(), structure.mean, strict=True):
            key = tuple(asu.to_asu([sign * hkl[0], hkl[1], sign * hkl[2]], operations)[0])
            if key in found:
                pairs.append((found[key], true))
        best = max(best, float(np.corrcoef(np.array(pairs).T)[0, 1]))
    return best


def test_resolved_and_merged(run: MergeInput, crystals: ObservationSimulator, tmp_path: Path) -> None:
    found = merged(tmp_path, run)
    assert found["ambiguity"] == []
    assert not any("ambiguity" in text for text in found["warnings"])
    said = found["settings"]
    assert said["resolved"]
    assert said["significance"] > 5.0
    assert [one["operator"] for one in said["operators"]] == list(FOUR)
    assert [one["strain"] for one in said["operators"]] == [0.0, 0.0]
    assert sum(one["lattices"] for one in said["operators"]) + sum(said["doubt"].values()) == said["n_lattices"] == 75
    table = lattices(tmp_path)
    assert share_right(crystals, table["setting"]) >= 0.98
    assert table["unit"].tolist() == sorted([*range(3)] * UNIT)
    assert table["lattice"].tolist() == [*range(UNIT)] * 3
    assert np.mean(table["probability"]) > 0.99
    off = merged(tmp_path / "off", run, settings=Merge(ambiguity={"resolve": "off"}))
    assert off["ambiguity"] == ["-h,k,-l"]
    assert "not resolved" in off["warnings"][0]
    assert not (tmp_path / "off" / "merged" / FILE).exists()
    resolved, mixed = (correlation(crystals, folder / "merged" / "merged.mtz") for folder in (tmp_path, tmp_path / "off"))
    assert resolved > 0.995
    assert mixed < resolved - 0.1


@pytest.mark.slow
def test_the_same_bytes_by_any_driver(run: MergeInput, tmp_path: Path) -> None:
    merged(tmp_path / "a", run, fold_size=20)
    merged(tmp_path / "b", run, fold_size=20, driver="pool", workers=2)
    for name in ("merged.mtz", "unmerged.mtz", FILE):
        assert (tmp_path / "a" / "merged" / name).read_bytes() == (tmp_path / "b" / "merged" / name).read_bytes()


def test_lattices_beyond_the_sample_are_placed(
    run: MergeInput, crystals: ObservationSimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = lattices_of_sample(monkeypatch, 1500)
    merged(tmp_path, run, fold_size=20)
    assert 10 < few[-1] < 50
    assert share_right(crystals, lattices(tmp_path)["setting"]) >= 0.98


def lattices_of_sample(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    from xfelproc.algorithms.merging.ambiguity_sample import LatticeSample

    limited, sizes = LatticeSample._limited, []

    def fewer(self: LatticeSample, _: int) -> LatticeSample:
        found = limited(self, most)
        sizes.append(len(found.counts))
        return found

    monkeypatch.setattr(LatticeSample, "_limited", fewer)
    return sizes


def test_no_ambiguity_costs_nothing(run: MergeInput, tmp_path: Path) -> None:
    found = merged(tmp_path, run, "P 4 2 2")
    assert found["settings"] == {"ambiguous": False}
    assert found["ambiguity"] == []
    assert not (tmp_path / "merged" / FILE).exists()


def test_a_triclinic_lattice_has_nothing_to_resolve(tmp_path: Path) -> None:
    crystals = simulator(cell=(40.0, 44.0, 50.0, 80.0, 95.0, 100.0), space_group="P 1", settings=())
    found = merged(tmp_path / "out", make_run(tmp_path / "run", crystals, 25), "P 1")
    assert found["settings"] == {"ambiguous": False}
    assert not any("ambiguity" in text for text in found["warnings"])


def test_intensities_without_a_preference_are_not_sorted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", simulator(space_group="P 4 2 2", settings=()))
    found = merged(tmp_path, run)
    assert found["ambiguity"] == ["-h,k,-l"]
    assert not found["settings"]["resolved"]
    assert any("could not be resolved" in text for text in found["warnings"])
    assert np.all(lattices(tmp_path)["setting"] == 0)


def reference(folder: Path, crystals: ObservationSimulator, group: str = "P 4", cell: tuple[float, ...] = CELL) -> Path:
    """Write the true intensities, in the setting that the crystals do not have."""
    structure = crystals.structure
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = gemmi.SpaceGroup(group)
    mtz.set_cell_for_all(gemmi.UnitCell(*cell))
    mtz.add_dataset("known")
    for label, kind in (("FP", "F"), ("SIGFP", "Q")):
        mtz.add_column(label, kind)
    f = np.sqrt(structure.mean)
    mtz.set_data(np.column_stack([structure.hkl * [-1, 1, -1], f, 0.02 * f]).astype(np.float32))
    path = folder / "known.mtz"
    mtz.write_to_file(str(path))
    return path


def test_against_a_reference(run: MergeInput, crystals: ObservationSimulator, tmp_path: Path) -> None:
    known = reference(tmp_path, crystals)
    found = merged(tmp_path, run, settings=Merge(ambiguity={"reference": str(known)}))
    assert found["settings"]["reference"] == "known.mtz"
    truth = crystals.simulate(0, 75).crystals.setting
    assert np.mean(lattices(tmp_path)["setting"] == 1 - truth) >= 0.98, "it says which setting is wanted"


@pytest.mark.parametrize(
    ("group", "cell", "words"),
    [
        ("P 4 2 2", CELL, r"P 4 2 2 has other rotations than P 4"),
        ("P 4", (66.0, 66.0, 40.0, 90.0, 90.0, 90.0), r"its cell is 66\.00 .* that of the lattices 60\.00"),
    ],
)
def test_a_reference_that_does_not_fit(
    run: MergeInput, crystals: ObservationSimulator, tmp_path: Path, group: str, cell: tuple[float, ...], words: str
) -> None:
    known = reference(tmp_path, crystals, group, cell)
    with pytest.raises(ConfigError, match=words):
        merged(tmp_path, run, settings=Merge(ambiguity={"reference": str(known)}))


def test_a_reference_that_cannot_be_read(run: MergeInput, tmp_path: Path) -> None:
    (tmp_path / "known.mtz").write_bytes(b"no mtz")
    with pytest.raises(DataError, match=r"known\.mtz"):
        merged(tmp_path, run, settings=Merge(ambiguity={"reference": str(tmp_path / "known.mtz")}))


def test_an_accident_moves_axes(tmp_path: Path) -> None:
    """Nearly equal axes of an orthorhombic crystal: cells and orientations are turned with the indices."""
    cell = (50.0, 50.3, 40.0, 90.0, 90.0, 90.0)
    crystals = simulator(cell=cell, space_group="P 21 21 21", settings=("h,k,l", "k,h,-l"))
    run = make_run(tmp_path / "run", crystals)
    found = merged(tmp_path, run, "P 21 21 21")
    assert found["settings"]["resolved"]
    assert (
        found["settings"]["operators"][1]["strain"] == pytest.approx(0.006, abs=0.001)
        or found["settings"]["operators"][1]["strain"] < 1e-3
    )
    assert sorted(found["cell"][:2]) == pytest.approx([50.0, 50.3], abs=0.02)
    assert share_right(crystals, lattices(tmp_path)["setting"]) >= 0.98


def test_lattices_of_unknown_setting(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", simulator(outlier_lattices=0.3, reach=2.0))
    out = merged(tmp_path / "out", run)
    # none leaves for its correlation, as most of these would
    kept = merged(tmp_path / "kept", run, settings=Merge(ambiguity={"undecided": "keep"}, min_lattice_cc=-1.0))
    doubt = lattices(tmp_path / "out")["doubt"]
    assert 10 < np.count_nonzero(doubt) < 40
    assert sum(out["settings"]["doubt"].values()) == np.count_nonzero(doubt)
    assert any(f"{np.count_nonzero(doubt)} of 75 lattices have an unknown setting" in text for text in out["warnings"])
    assert np.array_equal(lattices(tmp_path / "kept")["doubt"], doubt)
    assert kept["overall"]["n_observations"] > 1.1 * out["overall"]["n_observations"]
    assert out["overall"]["cc_half"] > kept["overall"]["cc_half"]


def test_a_tolerance_decides_what_is_an_accident(tmp_path: Path) -> None:
    crystals = simulator(cell=(50.0, 50.8, 40.0, 90.0, 90.0, 90.0), space_group="P 2 2 2", settings=("h,k,l", "k,h,-l"))
    run = make_run(tmp_path / "run", crystals, 25)
    assert merged(tmp_path / "a", run, "P 2 2 2", Merge(ambiguity={"max_obliquity": 0.2, "resolve": "off"}))["settings"] == {
        "ambiguous": False
    }
    found = merged(tmp_path / "b", run, "P 2 2 2", Merge(ambiguity={"max_obliquity": 1.5, "resolve": "off"}))["settings"]
    assert found["operators"][1]["strain"] == pytest.approx(0.016, abs=0.003)


def test_typical_cell(run: MergeInput) -> None:
    assert typical_cell(FoundShards.of([run]).blocks) == pytest.approx(CELL)
