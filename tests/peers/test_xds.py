"""Prediction of a sweep against XDS: a run on zeolite LTA by electrons, whose orientation moves from block to block."""

from __future__ import annotations

import lzma
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from xfelproc.geometry.rotation import Sweep
from xfelproc.io.exchange.xds_read import models_of_xds, read_xds_reflections, read_xparm
from xfelproc.models.experiment import Experiment, Scan

WAVELENGTH_LENGTH = 1.0 / 0.019690


@dataclass(frozen=True)
class Block:
    """What INTEGRATE.LP prints for a block of images."""

    first: int
    last: int
    axes: np.ndarray
    axis: np.ndarray
    beam: np.ndarray
    origin: np.ndarray
    distance: float


def numbers(text: str, label: str) -> list[float]:
    found = re.search(rf"{re.escape(label)}\s+([-+.\d\s]+)", text)
    assert found, label
    return [float(v) for v in found.group(1).split("\n")[0].split()]


def blocks(path: Path) -> list[Block]:
    found = []
    for part in re.split(r"PROCESSING OF IMAGES", path.read_text())[1:]:
        first, last = (int(v) for v in re.findall(r"\d+", part.split("\n")[0])[:2])
        axes = np.array([numbers(part, f"COORDINATES OF UNIT CELL {n}-AXIS") for n in "ABC"])
        found.append(
            Block(
                first,
                last,
                axes,
                np.array(numbers(part, "LAB COORDINATES OF ROTATION AXIS")),
                np.array(numbers(part, "DIRECT BEAM COORDINATES (REC. ANGSTROEM)")),
                np.array(numbers(part, "DETECTOR ORIGIN (PIXELS) AT")),
                numbers(part, "CRYSTAL TO DETECTOR DISTANCE (mm)")[0],
            )
        )
    return found


@pytest.fixture
def folder(shared_data: Path) -> Path:
    return shared_data / "xds_lta"


@pytest.fixture
def model(folder: Path) -> Experiment:
    return read_xparm(folder / "XPARM.XDS")


def unpacked(packed: Path, folder: Path) -> Path:
    path = folder / packed.stem
    path.write_bytes(lzma.decompress(packed.read_bytes()))
    return path


def test_predictions_of_each_block(folder: Path, model: Experiment, tmp_path: Path) -> None:
    """Calculated positions come back to 0.05 px and 0.15 frame; XDS prints them to 0.1 and the models to 0.01 px and 0.001 Å."""
    reflections = read_xds_reflections(unpacked(folder / "INTEGRATE.HKL.xz", tmp_path))
    panel = model.detector.panels[0]
    start, width = model.scan.oscillation
    off = []
    for block in blocks(folder / "INTEGRATE.LP"):
        rows = (reflections.z >= block.first - 1) & (reflections.z < block.last)
        scan = Scan((start, width), (1, 757))
        origin = (np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), block.origin[0], block.origin[1], block.distance)
        beam, detector, goniometer, a = models_of_xds(block.axes, block.axis, block.beam, origin, panel, scan)
        sweep = Sweep(beam, detector, goniometer, scan, a[None], "P 1")
        found = sweep.predict_indices(reflections.hkl[rows], reflections.z[rows], 0)
        off.append(found - np.column_stack([reflections.fast[rows], reflections.slow[rows], reflections.z[rows]]))
    error = np.concatenate(off)
    assert len(error) > 15000
    assert not np.isnan(error).any()
    rms = np.sqrt(np.mean(error**2, axis=0))
    print(rms, len(error))
    assert (rms < [0.05, 0.05, 0.15]).all()
