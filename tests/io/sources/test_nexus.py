from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.io.sources import hdf5_files as make
from xfelproc.errors import ConfigError, DataError
from xfelproc.io.exchange.geom_write import write_geom
from xfelproc.io.exchange.nexus import read_nexus_geometry, write_nexus_geometry
from xfelproc.io.sources.hdf5 import open_hdf5
from xfelproc.io.sources.overrides import beam_center
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.models.conventions import MaskBit, wavelength_of
from xfelproc.models.experiment import Beam, Detector, Experiment, Goniometer, Panel, Scan


def experiment(n_panels: int = 1, **more: Any) -> Experiment:
    panels = tuple(
        Panel(
            name=f"p{k}",
            fast_axis=(1, 0, 0),
            slow_axis=(0, -1, 0),
            origin=(-2.0, 1.5 - 5.0 * k, -100.0),
            pixel_size=(0.1, 0.1),
            image_size=(64, 48),
            trusted_range=(0.0, 1000.0),
            thickness=0.32,
            material="Si",
        )
        for k in range(n_panels)
    )
    return Experiment(Beam(1.0), Detector(panels), **more)


def nexus(path: Path, array: Any = None, n_panels: int = 1, link: bool = True, **more: Any) -> Path:
    """Write an NXmx master, its frames in a file of their own."""
    write_nexus_geometry(experiment(n_panels, **more), path)
    with h5py.File(path, "a") as file:
        group = file["entry"].create_group("data")
        group.attrs["NX_class"] = "NXdata"
        if array is not None and link:
            make.write(path.with_name("data.h5"), array)
            group["data"] = h5py.ExternalLink("data.h5", "/entry/data/data")
        elif array is not None:
            group["data"] = array
    return path


def dectris(folder: Path, counts: tuple[int, ...] = (3, 3, 2), missing: tuple[int, ...] = ()) -> tuple[Path, Any]:
    """Write a Dectris master without modules, and its data files."""
    array = make.frames(sum(counts), dtype="u4")
    array[:, 0, 0] = 0xFFFFFFFF
    with h5py.File(folder / "x_master.h5", "w") as file:
        detector = file.create_group("entry/instrument/detector")
        for name, value, unit in (
            ("detector_distance", 0.15, "m"),
            ("x_pixel_size", 75e-6, "m"),
            ("y_pixel_size", 75e-6, "m"),
            ("beam_center_x", 30.0, "pixel"),
            ("beam_center_y", 20.0, "pixel"),
            ("sensor_thickness", 450e-6, "m"),
        ):
            detector.create_dataset(name, data=value).attrs["units"] = unit
        detector["sensor_material"] = "Si"
        detector["detectorSpecific/nimages"] = sum(counts)
        detector["detectorSpecific/ntrigger"] = 1
        detector["detectorSpecific/countrate_correction_count_cutoff"] = 5000
        mask = np.zeros((48, 64), dtype=np.uint32)
        mask[0, 0] = 1
        detector["detectorSpecific/pixel_mask"] = mask
        file["entry/instrument/beam/incident_wavelength"] = 0.98
        file["entry/sample/goniometer/omega"] = 10 + 0.1 * np.arange(sum(counts))
        start = 0
        for k, count in enumerate(counts, 1):
            name = f"x_data_{k:06d}.h5"
            file[f"entry/data/data_{k:06d}"] = h5py.ExternalLink(name, "/entry/data/data")
            if k not in missing:
                make.write(folder / name, array[start : start + count])
            start += count
    return folder / "x_master.h5", array


def test_frames_behind_an_external_link(tmp_path: Path) -> None:
    array = make.frames(4)
    source = open_hdf5(nexus(tmp_path / "a.nxs", array))
    assert source.n_frames == 4
    assert np.array_equal(source.read(3).pixels[0], array[3])
    models = source.experiment(0)
    assert beam_center(models.detector, models.beam) == pytest.approx((20, 15))
    panel = models.detector.panels[0]
    assert (panel.thickness, panel.material) == (pytest.approx(0.32), "Si")
    assert panel.mu > 3
    assert panel.trusted_range == (0, 1000)
    assert models.scan is None


@pytest.mark.parametrize("layout", ["links", "virtual"])
def test_virtual_dataset_of_files(tmp_path: Path, layout: str) -> None:
    master, array = dectris(tmp_path)
    if layout == "virtual":
        virtual = h5py.VirtualLayout(shape=array.shape, dtype=array.dtype)
        start = 0
        for k, count in enumerate((3, 3, 2), 1):
            origin = h5py.VirtualSource(f"x_data_{k:06d}.h5", "/entry/data/data", shape=(count, 48, 64))
            virtual[start : start + count] = origin
            start += count
        with h5py.File(master, "a") as file:
            file["entry/data"].create_virtual_dataset("data", virtual)
    source = open_hdf5(master)
    assert source.n_frames == 8
    assert {Path(s.file).name for s in source.layout.parts[0].segments} == {f"x_data_{k:06d}.h5" for k in (1, 2, 3)}
    for k in (7, 0, 3, 2):
        assert np.array_equal(source.read(k).pixels[0], array[k])


def test_a_virtual_dataset_of_a_wider_type(tmp_path: Path) -> None:
    array = make.frames(3)
    make.write(tmp_path / "s.h5", array)
    virtual = h5py.VirtualLayout(shape=array.shape, dtype="i8")
    virtual[:] = h5py.VirtualSource("s.h5", "/entry/data/data", shape=array.shape)
    path = nexus(tmp_path / "a.nxs")
    with h5py.File(path, "a") as file:
        file["entry/data"].create_virtual_dataset("data", virtual)
    frame = open_hdf5(path).read(1)
    assert frame.pixels.dtype == np.uint16
    assert np.array_equal(frame.pixels[0], array[1])


def test_tiled_virtual_dataset(tmp_path: Path) -> None:
    left, right = make.frames(3, (48, 32), seed=1), make.frames(3, (48, 32), seed=2)
    make.write(tmp_path / "l.h5", left)
    make.write(tmp_path / "r.h5", right)
    virtual = h5py.VirtualLayout(shape=(3, 48, 64), dtype="u2")
    virtual[:, :, :32] = h5py.VirtualSource(str(tmp_path / "l.h5"), "/entry/data/data", shape=left.shape)
    virtual[:, :, 32:] = h5py.VirtualSource(str(tmp_path / "r.h5"), "/entry/data/data", shape=right.shape)
    path = nexus(tmp_path / "a.nxs")
    with h5py.File(path, "a") as file:
        file["entry/data"].create_virtual_dataset("data", virtual)
    assert np.array_equal(open_hdf5(path).read(1).pixels[0], np.concatenate([left[1], right[1]], axis=1))
    (tmp_path / "r.h5").unlink()
    with pytest.raises(DataError, match=r"r\.h5"):
        open_hdf5(path).read(1)


def test_dectris_master_without_modules(tmp_path: Path) -> None:
    source = open_hdf5(dectris(tmp_path)[0])
    summary = source.summary()
    models = summary.experiment
    assert summary.format == "Dectris HDF5"
    assert beam_center(models.detector, models.beam) == pytest.approx((30, 20))
    assert models.detector.panels[0].origin[2] == pytest.approx(-150)
    assert models.detector.panels[0].trusted_range == (0, 5000)
    assert models.scan == Scan((10.0, pytest.approx(0.1)), (1, 8), 0.0)  # type: ignore[arg-type]
    assert any("+x" in note for note in summary.notes)
    assert source.static_mask()[0, 0, 0] == MaskBit.BAD
    assert source.static_mask().sum() == 1


def test_a_missing_file_among_several(tmp_path: Path) -> None:
    master, array = dectris(tmp_path, missing=(2,))
    source = open_hdf5(master)
    assert source.n_frames == 8
    assert any("x_data_000002.h5" in note for note in source.summary().notes)
    assert np.array_equal(source.read(7).pixels[0], array[7])
    with pytest.raises(DataError, match=r"x_data_000002\.h5") as caught:
        source.read(4)
    assert caught.value.frame == 4
    assert str(master) in str(caught.value)


def test_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x_data_000001\.h5"):
        open_hdf5(dectris(tmp_path, missing=(1, 2, 3))[0])


def test_wavelength_a_frame_and_energy(tmp_path: Path) -> None:
    path = nexus(tmp_path / "a.nxs", make.frames(4))
    with h5py.File(path, "a") as file:
        beam = file["entry/instrument/beam"]
        del beam["incident_wavelength"]
        beam.create_dataset("incident_energy", data=[9.0, 9.1, 9.2, 9.3]).attrs["units"] = "keV"
    source = open_hdf5(path)
    assert [source.experiment(k).beam.wavelength for k in range(4)] == pytest.approx(
        [wavelength_of(e) for e in (9000, 9100, 9200, 9300)]
    )
    assert source.experiment(0).detector is source.experiment(3).detector
    source.close()
    with h5py.File(path, "a") as file:
        del file["entry/instrument/beam/incident_energy"]
    with pytest.raises(ConfigError, match=r"input\.wavelength"):
        open_hdf5(path).experiment(0)
    assert open_hdf5(path, SourceSettings(wavelength=1.1)).experiment(0).beam.wavelength == 1.1


def test_spectra_are_reduced_to_their_mean(tmp_path: Path) -> None:
    path = nexus(tmp_path / "a.nxs", make.frames(2))
    with h5py.File(path, "a") as file:
        beam = file["entry/instrument/beam"]
        del beam["incident_wavelength"]
        beam.create_dataset("incident_wavelength", data=[1.0, 1.2]).attrs["units"] = "angstrom"
        beam["incident_wavelength_weights"] = [[1.0, 3.0], [3.0, 1.0]]
    assert [open_hdf5(path).experiment(k).beam.wavelength for k in (0, 1)] == pytest.approx([1.15, 1.05])


def test_the_detector_does_not_depend_on_the_frame_read_first(tmp_path: Path) -> None:
    path = nexus(tmp_path / "a.nxs", make.frames(4))
    with h5py.File(path, "a") as file:
        beam = file["entry/instrument/beam"]
        del beam["incident_wavelength"]
        beam.create_dataset("incident_wavelength", data=[np.nan, 1.3, 1.2, 0.0]).attrs["units"] = "angstrom"
        beam.create_dataset("incident_wavelength_spread", data=0.013).attrs["units"] = "angstrom"
    for settings in (SourceSettings(), SourceSettings(sensor_material="Si", sensor_thickness=0.45)):
        first, last = (open_hdf5(path, settings) for _ in range(2))
        assert first.experiment(1).beam.bandwidth == pytest.approx(0.01)
        last.static_mask()
        assert last.experiment(2).detector == first.experiment(1).detector
    for frame in (0, 3):
        with pytest.raises(DataError, match=r"input\.wavelength"):
            first.experiment(frame)


def test_a_detector_that_moves(tmp_path: Path) -> None:
    path = nexus(tmp_path / "a.nxs", make.frames(4))
    with h5py.File(path, "a") as file:
        moves = file["entry/instrument/detector/transformations"]
        axis = moves.create_dataset("z", data=[0.0, 0.0, 5.0, 5.0])
        axis.attrs.update({"transformation_type": "translation", "vector": [0.0, 0.0, 1.0], "units": "mm", "depends_on": "."})
        moves["detector"].attrs["depends_on"] = "z"
    source = open_hdf5(path)
    assert [source.experiment(k).detector.panels[0].origin[2] for k in range(4)] == pytest.approx([-100, -100, -105, -105])
    assert source.experiment(2).detector is source.experiment(3).detector


def test_modules_in_a_stack(tmp_path: Path) -> None:
    array = make.frames(3, (12, 48, 64))
    source = open_hdf5(nexus(tmp_path / "a.nxs", array, n_panels=12))
    assert source.layout.is_direct
    assert np.array_equal(source.read(2).pixels, array[2])
    # panels are in the order of the data, not of their names
    assert [p.name for p in source.experiment(0).detector.panels] == [f"p{k}" for k in range(12)]


def test_goniometer_chain_and_scan(tmp_path: Path) -> None:
    chain = Goniometer(((0.6, 0.8, 0.0), (1.0, 0.0, 0.0)), (30.0, 0.0), ("phi", "omega"), 1)
    path = nexus(tmp_path / "a.nxs", make.frames(4), goniometer=chain, scan=Scan((5.0, 0.2), (1, 4), 0.05))
    models = open_hdf5(path).experiment(0)
    assert models.goniometer is not None
    assert np.allclose(models.goniometer.axes, chain.axes)
    assert models.goniometer.scan_axis == 1
    assert models.scan is not None
    assert models.scan.oscillation == pytest.approx((5.0, 0.2))
    assert models.scan.exposure_time == 0.05


def test_a_geometry_file_replaces_the_headers(tmp_path: Path) -> None:
    array = make.frames(3)
    path = nexus(tmp_path / "a.nxs", array)
    moved = replace(experiment(), detector=experiment().detector.shifted((1.0, 2.0, 3.0)))
    write_geom(moved, tmp_path / "b.geom")
    source = open_hdf5(path, SourceSettings(geometry=tmp_path / "b.geom"))
    assert source.experiment(0).detector.panels[0].origin == pytest.approx((-1.0, 3.5, -97.0))
    assert np.array_equal(source.read(1).pixels[0], array[1])


def _truncate(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))


@pytest.mark.parametrize(
    ("harm", "words"), [("missing", "no such file"), ("empty", "empty"), ("text", "not HDF5"), ("cut", "cut short")]
)
def test_files_that_cannot_be_opened(tmp_path: Path, harm: str, words: str) -> None:
    path = tmp_path / "a.nxs"
    if harm != "missing":
        nexus(path, make.frames(3), link=False)
    if harm == "empty":
        path.write_bytes(b"")
    if harm == "text":
        path.write_text("hello" * 1000)
    if harm == "cut":
        _truncate(path, 0.5)
    with pytest.raises(DataError, match=words) as caught:
        open_hdf5(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("frame", [0, 2, 4])
def test_a_corrupt_frame_leaves_the_others(tmp_path: Path, frame: int) -> None:
    array = make.frames(5)
    path = nexus(tmp_path / "a.nxs", array)
    with h5py.File(tmp_path / "data.h5", "r") as file:
        info = file["entry/data/data"].id.get_chunk_info_by_coord((frame, 0, 0))
        start, size = info.byte_offset, info.size
    with (tmp_path / "data.h5").open("r+b") as stream:
        stream.seek(start + 12)
        stream.write(b"\xff" * (size - 12))
    source = open_hdf5(path)
    for k in range(5):
        if k == frame:
            with pytest.raises(DataError, match="damaged") as caught:
                source.read(k)
            assert caught.value.frame == frame
        else:
            assert np.array_equal(source.read(k).pixels[0], array[k])


def test_frames_that_do_not_fit(tmp_path: Path) -> None:
    for name, array in (("a", make.frames(2, (40, 64))), ("b", make.frames(2)[0, 0])):
        with pytest.raises(DataError):
            open_hdf5(nexus(tmp_path / f"{name}.nxs", array, link=False))
    text = nexus(tmp_path / "t.nxs", np.array([["x" * 8] * 64] * 48, dtype="S8"), link=False)
    with pytest.raises(DataError, match="not numbers"):
        open_hdf5(text)


def test_a_mask_of_another_shape(tmp_path: Path) -> None:
    path = nexus(tmp_path / "a.nxs", make.frames(2))
    with h5py.File(path, "a") as file:
        file["entry/instrument/detector/pixel_mask"] = np.zeros((10, 10), dtype=np.uint32)
    with pytest.raises(DataError, match="pixel_mask"):
        open_hdf5(path).read(0)


def test_axes_that_lead_nowhere(tmp_path: Path) -> None:
    path = nexus(tmp_path / "a.nxs", make.frames(2))
    with h5py.File(path, "a") as file:
        moves = file["entry/instrument/detector/transformations"]
        moves["detector"].attrs["depends_on"] = "/entry/nothing"
    with pytest.raises(DataError, match="/entry/nothing"):
        open_hdf5(path)
    with h5py.File(path, "a") as file:
        file["entry/instrument/detector/transformations/detector"].attrs["depends_on"] = "detector"
    with pytest.raises(DataError, match="circle"):
        open_hdf5(path)


@pytest.mark.peer
def test_simulated_sweep(shared_data: Path) -> None:
    source = open_hdf5(shared_data / "rotation_sim" / "sweep_master.h5")
    models = source.experiment(0)
    with h5py.File(shared_data / "rotation_sim" / "truth.h5", "r", locking=False) as truth:
        true = truth["geometry/true"]
        panel = models.detector.panels[0]
        flip = np.array([-1, 1, -1])
        assert np.allclose(panel.origin, flip * true["origin"][0], atol=1e-9)
        assert np.allclose(panel.fast_axis, flip * true["fast"][0])
        assert np.allclose(panel.slow_axis, flip * true["slow"][0])
    # the header's (-1, 0, 0) in McStas's frame
    assert models.goniometer is not None
    assert models.goniometer.axes[0] == pytest.approx((1, 0, 0))
    assert models.scan is not None
    assert models.scan.oscillation == (0.0, 0.5)
    assert models.beam.polarization_fraction == pytest.approx(0.99)
    assert models.beam.bandwidth == pytest.approx(1.5e-4)
    with h5py.File(shared_data / "rotation_sim" / "sweep_data.h5", "r", locking=False) as file:
        assert np.array_equal(source.read(60).pixels[0], file["entry/data/data"][60])


@pytest.mark.peer
def test_master_without_its_frames(shared_data: Path) -> None:
    source = open_hdf5(shared_data / "nxmx" / "Therm_6_2.nxs")
    summary = source.summary()
    assert summary.n_frames == 488
    assert "Therm_6_2_000001.h5 is missing: its 488 frames cannot be read" in summary.notes
    assert beam_center(summary.experiment.detector, summary.experiment.beam) == pytest.approx((2216.0555, 2300.4105), abs=1e-3)
    assert summary.experiment.detector.panels[0].image_size == (4148, 4362)
    with pytest.raises(DataError, match=r"Therm_6_2_000001\.h5"):
        source.read(0)


@pytest.mark.peer
def test_agrees_with_the_nxmx_library(shared_data: Path) -> None:
    nxmx = pytest.importorskip("nxmx")
    for path in (shared_data / "nxmx" / "Therm_6_2.nxs", shared_data / "rotation_sim" / "sweep_master.h5"):
        models = read_nexus_geometry(path)
        with h5py.File(path, "r", locking=False) as file:
            entry = nxmx.NXmx(file).entries[0]
            fast = entry.instruments[0].detectors[0].modules[0].fast_pixel_direction
            matrix = nxmx.get_cumulative_transformation(nxmx.get_dependency_chain(fast))[0]
            goniometer = nxmx.get_dependency_chain(entry.samples[0].depends_on)
            axes = [np.asarray(a.vector) for a in goniometer if a.transformation_type == "rotation"]
            step = np.asarray(fast.vector) * np.asarray(fast[()].to("mm").magnitude).item()
        flip = np.array([-1, 1, -1])
        origin = np.asarray(models.detector.panels[0].origin)
        assert np.allclose(flip * (matrix[:3, 3] - step), origin, atol=1e-9)
        assert models.goniometer is not None
        assert np.allclose([flip * a / np.linalg.norm(a) for a in axes], models.goniometer.axes)
