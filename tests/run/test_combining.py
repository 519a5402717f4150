from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from tests.run.combine_runs import detector, make_run, open_lattices
from tests.run.synthetic_shards import gathering
from xfelproc.errors import ConfigError
from xfelproc.io.exchange.dials_expt import read_expt
from xfelproc.io.exchange.dials_refl import LatticeReflections, indexed_columns, integrated_table, read_refl
from xfelproc.io.exchange.dials_write import expt_content, write_expt
from xfelproc.io.exchange.run_export import dials_lattices
from xfelproc.io.shards import read_shard, shard_path
from xfelproc.models.experiment import Experiment
from xfelproc.run import combining
from xfelproc.run.combining import Combined, CombineInput, combine_runs, first_numbers
from xfelproc.stages.combine_settings import AS_THEY_ARE, Combine


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> CombineInput:
    return make_run(tmp_path_factory.mktemp("runs") / "a")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> CombineInput:
    return make_run(tmp_path_factory.mktemp("runs") / "b", 12, 5, seed=1, distance=100.2)


def combined(folder: Path, runs: list[CombineInput], settings: Combine, name: str = "x.expt", **execution: Any) -> Combined:
    return combine_runs(gathering(folder / "parts", **execution), runs, settings, folder / name, open_lattices)


def lattices_of(run: CombineInput) -> list[LatticeReflections]:
    """All lattices by the plain way."""
    found = []
    for unit in range(run.manifest.n_units):
        result = read_shard(shard_path(run.folder, "process", unit))
        for row, ref in enumerate(run.manifest.unit(unit).frames):
            path = run.manifest.sources.path(ref.source)
            models = open_lattices(path, run.settings).experiment(ref.index)
            found += dials_lattices(path, ref, models, result, row)
    return found


def same(first: Experiment, second: Experiment) -> None:
    assert first.crystal is not None
    assert second.crystal is not None
    assert np.allclose(first.crystal.a_matrix, second.crystal.a_matrix, atol=1e-15)
    assert np.allclose(first.detector.d_matrices, second.detector.d_matrices, atol=1e-12)
    assert (first.beam, first.identifier, first.image) == (second.beam, second.identifier, second.image)


@pytest.mark.parametrize("rows", [1 << 18, 40])
def test_files_are_those_of_all_lattices_in_memory(
    run: CombineInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(combining, "ROWS_A_PART", rows)  # one part, or several
    done = combined(tmp_path, [run], AS_THEY_ARE, fold_size=10)
    expected = lattices_of(run)
    assert (done.n_lattices, done.n_offered, done.left_out) == (len(expected), len(expected), {})
    content, plain = json.loads((tmp_path / "x.expt").read_text()), expt_content([item.experiment for item in expected])
    for name in ("experiment", "beam", "crystal", "imageset", "goniometer", "scan"):
        assert content[name] == plain[name], name
    assert len(content["detector"]) == len(plain["detector"]) == done.n_detectors
    for a, b in zip(read_expt(tmp_path / "x.expt"), expected, strict=True):
        same(a, b.experiment)
    found, table = read_refl(tmp_path / "x.refl"), integrated_table(expected)
    assert (found.identifiers, found.n_rows, found.kinds) == (table.identifiers, table.n_rows, table.kinds)
    for name in table.columns:
        assert np.array_equal(found.array(name), table.array(name)), name
    assert not (tmp_path / "parts" / "gather" / "combine").exists()


def test_indexed_spots(run: CombineInput, tmp_path: Path) -> None:
    combined(tmp_path, [run], Combine(min_reflections=0))
    table = read_refl(tmp_path / "x.refl")
    expected = [indexed_columns(number, item) for number, item in enumerate(lattices_of(run))]
    for name in expected[0]:
        assert np.array_equal(table.array(name), np.concatenate([part[name] for part in expected])), name
    assert set(np.unique(table.array("flags"))) == {45, 37 | 1 << 17}


def test_the_same_bytes_by_workers_and_after_a_stop(run: CombineInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(combining, "ROWS_A_PART", 60)
    names = [tmp_path / name for name in ("a", "b")]
    combined(names[0], [run], AS_THEY_ARE)
    with monkeypatch.context() as patch:
        patch.setattr(combining._Dials, "_files", _stop)
        with pytest.raises(RuntimeError, match="stopped"):
            combined(names[1], [run], AS_THEY_ARE, driver="pool", workers=2)
    parts = sorted((names[1] / "parts" / "gather" / "combine").rglob("*.h5"))
    times = [path.stat().st_mtime_ns for path in parts if path.parent.name == "0"]
    assert len(times) > 6
    combined(names[1], [run], AS_THEY_ARE, driver="pool", workers=2)
    for suffix in ("expt", "refl"):
        assert (names[0] / f"x.{suffix}").read_bytes() == (names[1] / f"x.{suffix}").read_bytes()


def _stop(*arguments: object) -> None:
    raise RuntimeError("stopped")


def test_batches(run: CombineInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(combining, "ROWS_A_PART", 60)
    done = combined(tmp_path, [run], AS_THEY_ARE.model_copy(update={"batch_size": 13}))
    assert [path.name for path in done.files][:3] == ["x_0000.expt", "x_0000.refl", "x_0001.expt"]
    expected, at = lattices_of(run), 0
    for path in done.files[::2]:
        experiments, table = read_expt(path), read_refl(path.with_suffix(".refl"))
        part = expected[at : at + len(experiments)]
        for a, b in zip(experiments, part, strict=True):
            same(a, b.experiment)
        plain = integrated_table(part)
        assert all(np.array_equal(table.array(name), plain.array(name)) for name in plain.columns)
        at += len(experiments)
    assert at == len(expected)


def test_several_runs_and_shared_models(run: CombineInput, other: CombineInput, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"frames1.txt frame 1: panel 0 \(p0\): origin differs by 0.2 mm.*origin_tolerance"):
        combined(tmp_path, [run, other], Combine(detector="shared"))
    done = combined(tmp_path, [run, other], Combine(detector="shared", origin_tolerance=0.3))
    experiments = read_expt(tmp_path / "x.expt")
    assert (done.n_detectors, len(experiments)) == (1, done.n_lattices)
    assert np.allclose(experiments[-1].detector.d_matrices, detector().d_matrices)
    assert {e.identifier.split("-")[0] for e in experiments} == {"0", "1"}
    assert len({e.identifier for e in experiments}) == len(experiments)


def test_wavelengths_that_differ_are_told(run: CombineInput, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"frame 28: wavelength differs by 0.00108 relative.*wavelength_tolerance.*beam = 'each'"):
        combined(tmp_path, [run], Combine(beam="average"))
    combined(tmp_path, [run], Combine(beam="average", compare=False, min_reflections=0))
    beams = [item.experiment.beam.wavelength for item in lattices_of(run)]
    assert read_expt(tmp_path / "x.expt")[0].beam.wavelength == pytest.approx(np.mean(beams), rel=1e-12)


def test_average_detector(run: CombineInput, tmp_path: Path) -> None:
    combined(tmp_path, [run], Combine(detector="average", min_reflections=0))
    frames = np.mean([item.experiment.detector.d_matrices for item in lattices_of(run)], axis=0)
    found = read_expt(tmp_path / "x.expt")[0].detector
    assert np.allclose(found.d_matrices[:, :, 2], frames[:, :, 2], atol=2e-5)
    assert found.hierarchy is not None


def test_a_reference_in_the_place_of_all(run: CombineInput, tmp_path: Path) -> None:
    models = Experiment(lattices_of(run)[0].experiment.beam, detector(123.0))
    write_expt([models], tmp_path / "reference.expt")
    combined(tmp_path, [run], Combine(detector="shared", reference=tmp_path / "reference.expt"))
    assert np.allclose(read_expt(tmp_path / "x.expt")[3].detector.d_matrices, models.detector.d_matrices)
    with pytest.raises(ValueError, match="needs detector = 'shared'"):
        Combine(reference=tmp_path / "reference.expt")


def test_nothing_left(run: CombineInput, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no lattice is left to combine \(\d+: too few reflections\)"):
        combined(tmp_path, [run], Combine(min_reflections=1000))


def test_chosen_lattices_as_zarr(run: CombineInput, other: CombineInput, tmp_path: Path) -> None:
    settings = Combine(n_subset=20, seed=3)
    done = combined(tmp_path, [run, other], settings, "x.zarr")
    combined(tmp_path, [run, other], settings, "x.expt")
    group: Any = zarr.open_group(tmp_path / "x.zarr", mode="r")
    experiments, table = read_expt(tmp_path / "x.expt"), read_refl(tmp_path / "x.refl")
    assert done.n_lattices == len(experiments) == group["lattices/A"].shape[0] == 20
    matrices = [e.crystal.a_matrix for e in experiments if e.crystal is not None]
    assert np.allclose(group["lattices/A"][:], matrices)
    frame = group["lattices/frame"][:]
    paths = group["sources/path"][:][group["frames/source"][:][frame]]
    assert [(path, index) for path, index in zip(paths, group["frames/index"][:][frame], strict=True)] == [
        e.image for e in experiments
    ]
    spots = group["indexed/spot"][:]
    assert np.array_equal(group["spots/fast"][:][spots], table.array("xyzobs.px.value")[:, 0])
    assert np.array_equal(group["spots/frame"][:][spots], frame[group["indexed/lattice"][:]])


def test_numbers_by_first_place() -> None:
    number, own = first_numbers(np.array([7, 3, 7, 1, 3]))
    assert number.tolist() == [0, 1, 0, 2, 1]
    assert own.tolist() == [True, True, False, True, False]
