from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.io.sources import hdf5_files as make
from xfelproc.errors import ConfigError, DataError
from xfelproc.io.sources.hdf5 import open_hdf5
from xfelproc.io.sources.overrides import beam_center
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.models.conventions import MaskBit, wavelength_of


def source_of(path: Path, geometry: Path, **more: object):  # type: ignore[no-untyped-def]
    return open_hdf5(path, SourceSettings(geometry=geometry, **more))


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", ["u2", "i2", "u4", "i4", "f4", ">u2", "u1", "i8", "f8"])
def test_frames_of_one_panel(tmp_path: Path, dtype: str, compressed: bool) -> None:
    array = make.frames(dtype=dtype)
    source = source_of(make.write(tmp_path / "a.h5", array, compressed=compressed), make.geom(tmp_path))
    assert source.n_frames == 5
    assert source.chunk_frames == 1
    for index in (4, 0, 2):
        frame = source.read(index, source=3)
        assert frame.pixels.shape == (1, 48, 64)
        assert frame.pixels.dtype.name in ("uint16", "int16", "uint32", "int32", "float32")
        assert frame.pixels.flags.c_contiguous
        assert np.array_equal(frame.pixels[0], array[index])
        assert (frame.ref.source, frame.ref.index) == (3, index)
    assert source.experiment(1).detector is source.experiment(3).detector


def test_beam_and_distance(tmp_path: Path) -> None:
    source = source_of(make.write(tmp_path / "a.h5", make.frames()), make.geom(tmp_path))
    experiment = source.summary().experiment
    assert experiment.beam.wavelength == pytest.approx(wavelength_of(9500))
    assert beam_center(experiment.detector, experiment.beam) == pytest.approx((32, 24))
    assert experiment.detector.panels[0].origin == pytest.approx((3.2, -2.4, -100))


def test_files_one_after_the_other_share_memory(tmp_path: Path) -> None:
    array = make.frames(2)
    paths = [make.write(tmp_path / f"{k}.h5", array[k : k + 1]) for k in range(2)]
    places = []
    for k, path in enumerate(paths):
        with source_of(path, make.geom(tmp_path)) as source:
            frame = source.read(0)
            assert np.array_equal(frame.pixels[0], array[k])
            places.append(frame.pixels.ctypes.data)
            del frame
    assert places[0] == places[1]


def test_pickled_and_forked_sources_read_the_same(tmp_path: Path) -> None:
    array = make.frames()
    source = source_of(make.write(tmp_path / "a.h5", array), make.geom(tmp_path))
    source.read(0)
    assert np.array_equal(pickle.loads(pickle.dumps(source)).read(1).pixels[0], array[1])
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    worker = context.Process(target=lambda: queue.put(int(source.read(2).pixels.sum())))
    worker.start()
    assert queue.get(timeout=20) == int(array[2].sum())
    worker.join()
    assert np.array_equal(source.read(3).pixels[0], array[3])


SLAB = """
photon_energy = /instrument/energy eV
clen = /instrument/encoder mm
coffset = 0.05
res = 10000
adu_per_eV = 0.001
data = /entry/data/data
dim0 = %
dim1 = ss
dim2 = fs
mask0_data = /entry/mask
mask0_badbits = 0x2
mask0_goodbits = 0x1
max_adu = 900
bad_a/min_fs = 3
bad_a/max_fs = 5
bad_a/min_ss = 30
bad_a/max_ss = 31
bad_a/panel = p1
bad_b/min_x = -10
bad_b/max_x = 10
bad_b/min_y = -10
bad_b/max_y = 10
p0/min_fs = 0
p0/max_fs = 31
p0/min_ss = 0
p0/max_ss = 23
p0/corner_x = 0
p0/corner_y = 0
p0/fs = x
p0/ss = y
p1/min_fs = 0
p1/max_fs = 23
p1/min_ss = 24
p1/max_ss = 47
p1/corner_x = 50
p1/corner_y = 0
p1/fs = -y
p1/ss = +1.0x +0.02z
p2/min_fs = 32
p2/max_fs = 63
p2/min_ss = 0
p2/max_ss = 23
p2/corner_x = 0
p2/corner_y = 50
p2/fs = x
p2/ss = y
p2/no_index = 1
"""


def test_slab_with_values_and_masks_from_the_file(tmp_path: Path) -> None:
    array = make.frames(4)
    mask = np.ones((48, 64), dtype=np.uint16)
    mask[15, 17], mask[32, 9] = 3, 0
    energy, encoder = np.array([9000.0, 9100, 9200, 9300]), np.array([50.0, 50, 51, 51])
    path = make.write(tmp_path / "a.h5", array, instrument__energy=energy, instrument__encoder=encoder, entry__mask=mask)
    source = source_of(path, make.geom(tmp_path, SLAB))
    frame = source.read(2)
    assert np.array_equal(frame.pixels[0, :24, :32], array[2, :24, :32])
    assert np.array_equal(frame.pixels[1, :24, :24], array[2, 24:48, :24])
    assert np.array_equal(frame.pixels[2, :24, :32], array[2, :24, 32:])
    assert frame.beam.wavelength == pytest.approx(wavelength_of(9200))
    assert frame.detector.panels[0].origin[2] == pytest.approx(-101.0)
    assert source.experiment(0).detector is source.experiment(1).detector
    assert source.experiment(1).detector is not source.experiment(2).detector
    assert source.experiment(0).detector.panels[0].gain == pytest.approx(9.0)
    assert frame.trusted[0, 1] == 900
    static = source.static_mask()
    assert not static.flags.writeable
    assert static[0, 15, 17] == MaskBit.BAD
    assert static[1, 8, 9] == MaskBit.BAD
    assert (static[1, 6:8, 3:6] & MaskBit.REGION).all()
    assert (static[1, :, 24:] == MaskBit.PADDING).all()
    assert (static[2] & MaskBit.REGION).all()
    # pixels whose centre is within 10 pixels of the beam along x and y
    assert (static[0, :10, :10] & MaskBit.REGION).all()
    assert not (static[0, 10:, :] & MaskBit.REGION).any()
    words = source.summary().mask
    assert "0x2" in words
    assert "0x1" in words


def test_tilted_axes_keep_their_z(tmp_path: Path) -> None:
    path = make.write(
        tmp_path / "a.h5", make.frames(1), instrument__energy=9000.0, instrument__encoder=50.0, entry__mask=np.ones((48, 64), "u2")
    )
    panel = source_of(path, make.geom(tmp_path, SLAB)).experiment(0).detector.panels[1]
    length = np.hypot(1, 0.02)
    assert panel.slow_axis == pytest.approx((-1 / length, 0, -0.02 / length))
    assert panel.fast_axis == pytest.approx((0, -1, 0))
    assert panel.pixel_size == pytest.approx((0.1, 0.1 * length))


def test_a_mask_a_frame(tmp_path: Path) -> None:
    text = make.GEOM + "p0/mask = /entry/mask\np0/mask_bad = 0xffff\n"
    mask = np.zeros((5, 48, 64), dtype=np.uint16)
    mask[3, 8, 9] = 4
    path = make.write(tmp_path / "a.h5", make.frames(), entry__mask=mask)
    source = source_of(path, make.geom(tmp_path, text))
    assert source.read(3).mask[0, 8, 9] == MaskBit.BAD
    assert not source.read(2).mask.any()
    assert not source.static_mask().any()


def test_mask_file_beside_the_geometry(tmp_path: Path) -> None:
    folder = tmp_path / "geometry"
    folder.mkdir()
    text = make.GEOM + "p0/mask = /mask\np0/mask_file = m.h5\np0/mask_good = 1\np0/mask_bad = 0\n"
    values = np.ones((48, 64), dtype=np.uint8)
    values[1, 2] = 0
    with h5py.File(folder / "m.h5", "w") as file:
        file["mask"] = values
    source = source_of(make.write(tmp_path / "a.h5", make.frames()), make.geom(folder, text))
    assert source.static_mask()[0, 1, 2] == MaskBit.BAD
    assert source.static_mask().sum() == MaskBit.BAD
    (folder / "m.h5").unlink()
    fresh = source_of(tmp_path / "a.h5", folder / "x.geom")
    with pytest.raises(DataError, match=r"m\.h5"):
        fresh.static_mask()


def test_flagged_values_and_edges(tmp_path: Path) -> None:
    text = make.GEOM + "p0/flag_equal = 7\np0/flag_lessthan = 1\np0/flag_morethan = 9\np0/mask_edge_pixels = 2\n"
    array = make.frames()
    source = source_of(make.write(tmp_path / "a.h5", array), make.geom(tmp_path, text))
    frame = source.read(1)
    inner = (slice(2, -2), slice(2, -2))
    assert np.array_equal((frame.mask[0][inner] & MaskBit.RANGE) != 0, ((array[1] == 7) | (array[1] > 9))[inner])
    assert frame.trusted[0, 0] == 1
    assert (frame.mask[0, :2] & MaskBit.EDGE).all()
    assert not source.static_mask()[0][inner].any()


def test_events_as_groups_and_as_axis(tmp_path: Path) -> None:
    text = make.GEOM.replace("/entry/data/data", "/run/%/data").replace("9500", "/run/%/energy eV")
    array = make.frames(6)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for k, name in enumerate(("e10", "e2", "e1")):
            file[f"run/{name}/data"] = array[2 * k : 2 * k + 2]
            file[f"run/{name}/energy"] = 9000.0 + 100 * k
    source = source_of(tmp_path / "a.h5", make.geom(tmp_path, text))
    assert source.n_frames == 6
    # groups are taken by number: e1, e2, e10
    assert np.array_equal(source.read(0).pixels[0], array[4])
    assert np.array_equal(source.read(3).pixels[0], array[3])
    assert np.array_equal(source.read(5).pixels[0], array[1])
    assert source.experiment(5).beam.wavelength == pytest.approx(wavelength_of(9000))
    assert source.event(3) == "e2//1"


def test_one_frame_a_group_without_an_axis(tmp_path: Path) -> None:
    text = make.GEOM.replace("/entry/data/data", "/run/%/data").replace("dim0 = %\ndim1 = ss\ndim2 = fs", "dim0 = ss\ndim1 = fs")
    array = make.frames(3)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for k in range(3):
            file[f"run/{k}/data"] = array[k]
    source = source_of(tmp_path / "a.h5", make.geom(tmp_path, text))
    assert [np.array_equal(source.read(k).pixels[0], array[k]) for k in range(3)] == [True] * 3


def modules(n: int, data: str, swap: bool = False) -> str:
    text = "photon_energy = 9000\nclen = 0.1\nres = 10000\n"
    for k in range(n):
        text += f"m{k}/data = {data.format(k)}\nm{k}/dim0 = %\nm{k}/dim1 = {k}\n"
        text += f"m{k}/dim2 = {'fs' if swap else 'ss'}\nm{k}/dim3 = {'ss' if swap else 'fs'}\n"
        text += f"m{k}/min_fs = 0\nm{k}/max_fs = 15\nm{k}/min_ss = 0\nm{k}/max_ss = 7\n"
        text += f"m{k}/corner_x = 0\nm{k}/corner_y = {10 * k}\nm{k}/fs = x\nm{k}/ss = y\n"
    return text


def test_modules_along_an_axis_are_a_view(tmp_path: Path) -> None:
    array = make.frames(3, (4, 8, 16))
    source = source_of(make.write(tmp_path / "a.h5", array, "/data"), make.geom(tmp_path, modules(4, "/data")))
    assert source.layout.is_direct
    assert np.array_equal(source.read(1).pixels, array[1])


def test_fast_axis_before_slow(tmp_path: Path) -> None:
    array = make.frames(3, (4, 16, 8))
    source = source_of(make.write(tmp_path / "a.h5", array, "/data"), make.geom(tmp_path, modules(4, "/data", swap=True)))
    assert np.array_equal(source.read(1).pixels, array[1].transpose(0, 2, 1))


def test_a_dataset_for_each_panel(tmp_path: Path) -> None:
    text = modules(2, "/det{}/data").replace("dim1 = 0\n", "dim1 = ss\n").replace("dim1 = 1\n", "dim1 = ss\n")
    text = "\n".join(line for line in text.splitlines() if "dim3" not in line).replace("dim2 = ss", "dim2 = fs")
    array = make.frames(6, (8, 16))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["det0/data"], file["det1/data"] = array[:3], array[3:]
    source = source_of(tmp_path / "a.h5", make.geom(tmp_path, text))
    assert source.n_frames == 3
    assert np.array_equal(source.read(2).pixels, array[[2, 5]])


def test_settings_override_the_geometry(tmp_path: Path) -> None:
    path = make.write(tmp_path / "a.h5", make.frames(), "/other/frames")
    source = source_of(
        path, make.geom(tmp_path), data_path="/other/frames", distance=123.0, wavelength=1.5, beam_center=(10.0, 11.0)
    )
    experiment = source.experiment(2)
    assert experiment.beam.wavelength == 1.5
    assert experiment.detector.panels[0].origin[2] == pytest.approx(-123)
    assert beam_center(experiment.detector, experiment.beam) == pytest.approx((10, 11))
    assert source.experiment(3).detector is experiment.detector
    assert any("wavelength" in note for note in source.summary().notes)


def test_without_wavelength_or_distance(tmp_path: Path) -> None:
    path = make.write(tmp_path / "a.h5", make.frames())
    with pytest.raises(ConfigError, match=r"input\.wavelength"):
        source_of(path, make.geom(tmp_path, make.GEOM.replace("photon_energy = 9500", ""))).experiment(0)
    with pytest.raises(ConfigError, match=r"input\.distance"):
        source_of(path, make.geom(tmp_path, make.GEOM.replace("clen = 0.1", ""))).experiment(0)
    with pytest.raises(ConfigError, match=r"input\.geometry"):
        open_hdf5(path)
    summary = source_of(path, make.geom(tmp_path, make.GEOM.replace("photon_energy = 9500", ""))).summary()
    assert np.isnan(summary.experiment.beam.wavelength)
    assert "input.wavelength" in summary.notes[0]


@pytest.mark.parametrize("clen", ["-0.1", "-20 mm", "0"])
def test_impossible_distances(tmp_path: Path, clen: str) -> None:
    path = make.write(tmp_path / "a.h5", make.frames())
    with pytest.raises(DataError, match="camera length"):
        source_of(path, make.geom(tmp_path, make.GEOM.replace("clen = 0.1", f"clen = {clen}"))).experiment(0)


def test_values_of_the_file_that_are_no_numbers(tmp_path: Path) -> None:
    text = make.GEOM.replace("9500", "/energy eV")
    path = make.write(tmp_path / "a.h5", make.frames(), energy=np.array([9000.0, np.nan, -5.0, 9000, 9000]))
    source = source_of(path, make.geom(tmp_path, text))
    assert source.experiment(0).beam.wavelength == pytest.approx(wavelength_of(9000))
    for index in (1, 2):
        with pytest.raises(DataError) as caught:
            source.read(index)
        assert caught.value.frame == index
    bad = make.write(tmp_path / "b.h5", make.frames(), energy=np.array([9000.0, 9000.0]))
    with pytest.raises(DataError, match="2 numbers"):
        source_of(bad, make.geom(tmp_path, text)).read(4)
    with pytest.raises(DataError, match="no dataset /energy"):
        source_of(make.write(tmp_path / "c.h5", make.frames()), make.geom(tmp_path, text)).read(0)


def test_frames_that_do_not_fit_the_geometry(tmp_path: Path) -> None:
    small = make.write(tmp_path / "a.h5", make.frames(2, (40, 64)))
    with pytest.raises(DataError, match="another detector"):
        source_of(small, make.geom(tmp_path))
    flat = make.write(tmp_path / "b.h5", make.frames(2)[0], compressed=False)
    with pytest.raises(DataError, match="axes"):
        source_of(flat, make.geom(tmp_path))
    with pytest.raises(DataError, match="no dataset /entry/nothing; /entry holds data"):
        source_of(small, make.geom(tmp_path, make.GEOM.replace("/entry/data/data", "/entry/nothing")))
    with pytest.raises(DataError, match="is a group"):
        source_of(small, make.geom(tmp_path, make.GEOM.replace("/entry/data/data", "/entry/data")))
    with pytest.raises(DataError, match="no such frame"):
        source_of(make.write(tmp_path / "c.h5", make.frames(3)), make.geom(tmp_path)).read(3)


@pytest.mark.peer
def test_simulated_stills(shared_data: Path) -> None:
    folder = shared_data / "stills_nanobragg"
    source = source_of(folder / "stills.h5", folder / "stills.geom")
    with h5py.File(folder / "stills.h5", "r", locking=False) as file:
        for index in (0, 31, 59):
            assert np.array_equal(source.read(index).pixels[0], file["entry/data/data"][index])
    experiment = source.experiment(0)
    assert beam_center(experiment.detector, experiment.beam) == pytest.approx((1003.2, 998.3), abs=1e-6)
    assert experiment.beam.wavelength == pytest.approx(1.305097, abs=1e-6)


def test_the_detector_does_not_depend_on_the_frame_read_first(tmp_path: Path) -> None:
    energy, encoder = np.array([np.nan, 9100.0, 9200, 9300]), np.full(4, 50.0)
    mask = np.ones((48, 64), dtype=np.uint16)
    path = make.write(tmp_path / "a.h5", make.frames(4), instrument__energy=energy, instrument__encoder=encoder, entry__mask=mask)
    first, last = (source_of(path, make.geom(tmp_path, SLAB)) for _ in range(2))
    assert first.experiment(1).detector == last.experiment(3).detector
    assert last.experiment(3).detector.panels[0].gain == pytest.approx(9.1)
    with pytest.raises(DataError, match="instrument/energy is nan"):
        first.experiment(0)
    assert first.static_mask().shape == (3, 24, 32)
