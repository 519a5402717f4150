from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from xfelproc.errors import ConfigError, DataError
from xfelproc.io.calibration_file import write_calibration
from xfelproc.io.exchange.detector_images import from_stack, read_images, write_images
from xfelproc.io.exchange.mask_files import crystfel_lines, read_reasons, write_mask
from xfelproc.io.sources import SourceSettings, open_source
from xfelproc.io.sources.masks import file_mask, to_stack
from xfelproc.models.calibration import DetectorConstants
from xfelproc.models.conventions import PixelMask
from xfelproc.models.experiment import Beam, Detector, Experiment, Panel

SIZES = ((20, 16), (20, 12))
PANELS = tuple(
    Panel(f"p{i}", (1, 0, 0), (0, -1, 0), (-3.0 + 3.0 * i, 2.0, -90.0), (0.1, 0.1), size, raw_image_offset=(22 * i, 3 * i))
    for i, size in enumerate(SIZES)
)
SLAB = Experiment(Beam(1.2), Detector(PANELS))
STACKED = Experiment(Beam(1.2), Detector(tuple(replace(p, raw_image_offset=(0, 0), image_size=(20, 16)) for p in PANELS)))
SINGLE = Experiment(Beam(1.2), Detector(PANELS[:1]))


def images(experiment: Experiment) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = experiment.detector.stack_shape
    stacks = {name: rng.normal(size=shape).astype(np.float32) for name in ("mean", "sd")}
    stacks["count"] = rng.integers(0, 9, shape).astype(np.uint32)
    for stack in stacks.values():
        for number, panel in enumerate(experiment.detector.panels):  # nothing in the padding
            stack[number, panel.image_size[1] :] = 0
    return stacks


@pytest.mark.parametrize("experiment", [SLAB, STACKED, SINGLE], ids=["slab", "stack", "single"])
def test_round_trip(tmp_path: Path, experiment: Experiment) -> None:
    path, stacks = tmp_path / "a.h5", images(experiment)
    write_images(path, stacks, experiment, {"n_frames": 7})
    found = read_images(path, ("mean", "sd", "count"))
    for name, stack in stacks.items():
        np.testing.assert_array_equal(found.images[name], stack)
    assert found.attributes["n_frames"] == 7
    for before, after in zip(experiment.detector.panels, found.experiment.detector.panels, strict=True):
        np.testing.assert_allclose(after.origin, before.origin, atol=1e-9)
        assert after.raw_image_offset == before.raw_image_offset
    # the same file is frames of NXmx
    with open_source(path) as source:
        assert source.n_frames == 2
        for index, name in enumerate(("mean", "sd")):
            np.testing.assert_array_equal(source.read(index).pixels, stacks[name])


def test_layouts() -> None:
    stack = images(SLAB)["mean"]
    slab = from_stack(stack, SLAB.detector)
    assert slab.shape == (16, 42)
    np.testing.assert_array_equal(to_stack(slab, SLAB.detector)[1, :12], stack[1, :12])
    assert from_stack(stack[:1], SINGLE.detector).shape == (16, 20)


@pytest.mark.parametrize("experiment", [SLAB, STACKED, SINGLE], ids=["slab", "stack", "single"])
def test_masks(tmp_path: Path, experiment: Experiment) -> None:
    path = tmp_path / "mask.h5"
    mask = np.zeros(experiment.detector.stack_shape, np.uint32)
    mask[0, 3, 4] = PixelMask.HOT | PixelMask.SHADOW
    mask[-1, 5, 6] = PixelMask.USER
    write_mask(path, mask, experiment)
    np.testing.assert_array_equal(read_reasons(str(path), experiment.detector), mask)
    np.testing.assert_array_equal(read_reasons(f"{path}:/mask", experiment.detector), mask)
    # as [input] mask, as an image of others, and as NXmx's pixel_mask
    used = file_mask(SourceSettings(mask=f"{path}:/mask"), experiment.detector)
    assert used is not None
    assert np.array_equal(used > 0, mask > 0)
    np.save(tmp_path / "other.npy", from_stack(mask, experiment.detector))
    assert np.array_equal(read_reasons(f"{tmp_path}/other.npy", experiment.detector) == PixelMask.USER, mask > 0)
    with h5py.File(path) as file:
        assert file["entry/instrument/detector/pixel_mask"].dtype == np.uint32
        assert np.count_nonzero(file["entry/instrument/detector/pixel_mask"]) == 2
    assert f"mask0_file = {path}" in crystfel_lines(path)


def test_bad_pixels_of_constants(tmp_path: Path) -> None:
    mask = np.zeros(SLAB.detector.stack_shape, np.uint32)
    mask[1, 2, 3] = PixelMask.NOISY
    pedestal = np.zeros((1, *mask.shape), np.float32)
    write_calibration(tmp_path / "constants.h5", DetectorConstants(pedestal=pedestal, mask=mask))
    np.testing.assert_array_equal(read_reasons(f"{tmp_path}/constants.h5", SLAB.detector), mask)


def test_wrong_masks(tmp_path: Path) -> None:
    np.save(tmp_path / "small.npy", np.zeros((4, 4)))
    with pytest.raises(ConfigError, match=r"small.npy.*shape \(4, 4\)"):
        read_reasons(f"{tmp_path}/small.npy", SLAB.detector)
    with pytest.raises(ConfigError, match="no such file"):
        read_reasons(f"{tmp_path}/none.h5", SLAB.detector)


def test_no_average(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_images(path, {"mean": images(SINGLE)["mean"]}, SINGLE, {})
    with pytest.raises(DataError, match="xfelproc average"):
        read_images(path, ("sd",))
