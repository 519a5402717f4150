"""Every parameter of every algorithm does something: another value gives another result on simulated frames."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from xfelproc.algorithms.merging import half_set, merge, prepare
from xfelproc.io.sources import open_source
from xfelproc.io.sources.base import FrameSource
from xfelproc.models.frames import CellTarget
from xfelproc.models.tables import Table
from xfelproc.run.messages import method_of, union_members
from xfelproc.run.sections import section_classes
from xfelproc.simulation import preset, simulate
from xfelproc.stages.stills import Stills, process

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

DETECTOR = {"size": (640, 640), "pixel_size": 0.2, "distance": 120.0, "dead": 0.01, "saturation": 3000}
SCENE = {"frames": 4, "ice": 25.0, "ice_spots": 12.0, "false_peaks": 0.1, "centre_error": 0.1, "scale_spread": 1.0}
CELL = [79.1, 79.1, 38.0, 90.0, 90.0, 90.0]
NO_CELL: dict[str, Any] = {"index.cell": None, "index.space_group": None}
XYZ: dict[str, Any] = {"refine.detector": "xyz"}
WRONG: dict[str, Any] = {"index.cell": [85.0, 85.0, 38.0, 90.0, 90.0, 90.0]}
BROAD: dict[str, Any] = {"index.min_misorientation": 0.0, "index.max_lattices": 6}
PAIRS: dict[str, Any] = {"merge.exclude": [], "merge.min_partiality": 0.0, "merge.partiality": "unity", "integrate.margin": 6.0}

OTHER: dict[str, tuple[Any, dict[str, Any]]] = {
    "calibrate.gain": (2.0, {}),
    "calibrate.edge_pixels": (60, {}),
    "spots.method": ("dispersion", {}),
    "spots.method.block_background.block_size": (100, {}),
    "spots.method.block_background.n_sigma": (8.0, {}),
    "spots.method.block_background.row_step": (1, {}),
    "spots.method.dispersion.sigma_background": (3.0, {}),
    "spots.method.dispersion.sigma_strong": (6.0, {}),
    "spots.method.dispersion.gain": (2.0, {}),
    "spots.method.dispersion.min_local": (49, {}),
    "spots.method.dispersion.threshold": (30.0, {}),
    "spots.method.dispersion_extended.sigma_background": (3.0, {}),
    "spots.method.dispersion_extended.sigma_strong": (6.0, {}),
    "spots.method.dispersion_extended.gain": (2.0, {}),
    "spots.method.dispersion_extended.min_local": (49, {}),
    "spots.method.dispersion_extended.threshold": (30.0, {}),
    "spots.method.radial_profile.snr": (10.0, {}),
    "spots.method.radial_profile.threshold": (30.0, {}),
    "spots.method.radial_profile.ring_bin": (20.0, {}),
    "spots.method.radial_profile.cycles": (1, {}),
    "spots.method.radial_profile.clip": (2.0, {}),
    "spots.min_snr": (20.0, {}),
    "spots.min_pixels": (6, {}),
    "spots.max_pixels": (10, {}),
    "spots.neighbours": (4, {}),
    "spots.split": (False, {}),
    "spots.ring_width": (6, {}),
    "spots.d_min": (4.0, {}),
    "spots.d_max": (8.0, {}),
    "spots.ice_rings": ("drop", {}),
    "spots.ice_width": (0.01, {}),
    "spots.max_peak_distance": (0.4, {}),
    "spots.max_spots": (40, {}),
    "spots.min_spots": (1000, {}),
    "spots.max_spots_hit": (40, {}),
    "index.cell": ([82.0, 82.0, 40.0, 90.0, 90.0, 90.0], {}),
    "index.space_group": ("P 1", {}),
    "index.max_lattices": (1, {}),
    "index.method": ("fft1d", {}),
    "index.method.auto.with_cell": ({"coverage": 0.9}, {}),
    "index.method.auto.without_cell": ({"max_spots": 30}, NO_CELL),
    "index.method.cell_search.coverage": (0.9, {}),
    "index.method.cell_search.retries": (0, {"spots.max_spots": 14}),
    "index.method.cell_search.shape_sigma": (0.001, {}),
    "index.method.fft1d.max_axis": (60.0, NO_CELL),
    "index.method.fft1d.min_axis": (60.0, NO_CELL),
    "index.method.fft1d.step": (4.0, NO_CELL),
    "index.method.fft1d.max_spots": (30, NO_CELL),
    "index.method.fft1d.n_candidates": (20, NO_CELL),
    "index.min_spots": (200, {}),
    "index.tolerance": (0.0005, {}),
    "index.log10_chance": (-90.0, {"spots.max_spots": 20}),
    "index.length_tolerance": (0.001, {}),
    "index.angle_tolerance": (0.01, {}),
    "index.max_penalty": (0.01, NO_CELL),
    "index.max_shift": (0.0, {}),
    "index.max_distance_error": (0.2, WRONG),
    "refine.detector": ("xyz", {}),
    "refine.tolerance": (0.1, {}),
    "refine.sigma_tangential": (4.0, {}),
    "refine.sigma_radial": (4.0, {}),
    "refine.sigma_floor": (1.0, {}),
    "refine.sigma_excitation": (0.01, {}),
    "refine.cell_restraint": (0.0001, {}),
    "refine.shift_restraint": (0.001, XYZ),
    "refine.tilt_restraint": (0.001, {"refine.detector": "tilt"}),
    "refine.outlier_limit": (2.0, {}),
    "refine.outlier_sigma": (1.1, {}),
    "refine.turns": (False, {"refine.sigma_floor": 0.3}),
    "refine.max_cycles": (1, {}),
    "refine.min_spots": (200, {}),
    "refine.max_rmsd": (0.01, {}),
    "refine.max_cell_change": (1e-5, {}),
    "refine.min_misorientation": (10.0, {**BROAD, "refine.min_misorientation": 0.0}),
    "refine.mosaicity.min_domain_size": (15000.0, {}),
    "refine.mosaicity.max_domain_size": (200.0, {}),
    "refine.mosaicity.min_half_mosaicity": (1.5, {}),
    "refine.mosaicity.max_half_mosaicity": (0.002, {}),
    "integrate.d_min": (3.0, {}),
    "integrate.d_max": (8.0, {}),
    "integrate.margin": (0.7, {}),
    "integrate.widths": (5.0, {}),
    "integrate.radius": (3.0, {}),
    "integrate.background_inner": (6.0, {}),
    "integrate.background_outer": (10.0, {}),
    "integrate.background_clip": (2.0, {}),
    "integrate.min_background": (100, {}),
    "integrate.resolution_push": (0.0, {}),
    "integrate.min_i_over_sigma": (30.0, {}),
    "merge.d_min": (3.0, {}),
    "merge.d_max": (8.0, {}),
    "merge.space_group": ("P 4/m m m", {}),
    "merge.anomalous": (False, PAIRS),
    "merge.exclude": ([], {}),
    "merge.partiality": ("unity", {}),
    "merge.min_partiality": (0.5, {}),
    "merge.scale": (False, {}),
    "merge.b_factor": (False, {}),
    "merge.b_restraint": (0.1, {}),
    "merge.max_cycles": (1, {}),
    "merge.outlier_cut": (1.5, {}),
    "merge.error_intensity": (0.3, {}),
    "merge.error_partiality": (0.3, {}),
    "merge.min_observations": (10**6, {}),
    "merge.min_lattice_cc": (0.99, {}),
    "merge.min_multiplicity": (3, {}),
    "merge.n_shells": (5, {}),
    "merge.free_fraction": (0.3, {}),
    "merge.free_choice": ("thin_shells", {}),
}
"""Another value of each parameter, and what else the job must say for it to matter."""
STAGES = ("", ".bits.shift", ".bits.stages", ".bits.panels", ".bits.saturated")
STAGES_OF_AN_ARRAY = (".array.thresholds", ".array.stages", ".array.panels", ".array.saturated")
COMMON_MODE = (
    "",
    *(f".{m}.{k}" for m in ("median", "mode", "peak", "unbonded") for k in ("group", "max_offset", "max_error", "noise")),
)
TESTED_APART = {
    **{
        f"merge.{name}": "tests/algorithms/merging/test_filters.py"
        for name in (
            *("max_cell_deviation", "max_cell_mahalanobis", "energy_range", "max_energy_deviation"),
            *("exclude_panels", "panel_edge", "significance"),
        )
    },
    **{
        f"calibrate.common_mode{key}": "tests/algorithms/calibration/test_common_mode.py"
        for key in (*COMMON_MODE, ".unbonded.pixels", ".unbonded.step")
    },
    **{f"calibrate.gain_stages{key}": "tests/algorithms/calibration/test_stages.py" for key in (*STAGES, *STAGES_OF_AN_ARRAY)},
    **{
        f"metrology.{name}": "tests/algorithms/metrology/test_keys.py"
        for name in (
            *("levels", "distance", "tilts", "outliers", "outlier_limit", "sigma_floor", "sigma_psi", "sigma_psi_floor"),
            *("prediction", "cell_restraint", "restraint", "min_crystals", "min_crystal_spots", "min_spots", "max_iterations"),
            *("tolerance", "max_shift"),
        )
    },
    **{f"merge.{name}": "tests/algorithms/merging/test_influence.py" for name in ("delta_cc_half", "delta_cc_half_cut")},
    **{f"merge.{name}": "tests/run/test_merge_filters.py" for name in ("stretches", "stretch_cut")},
    "merge.compare_to": "tests/run/test_comparison.py",
    "integrate.control": "tests/algorithms/integration/test_control.py",
    "merge.unmerged": "tests/run/test_merging.py",
    "merge.reference": "tests/run/test_merge_reference.py",
    **{f"merge.{name}": "tests/run/test_downstream.py" for name in ("free_from", "free_twin_laws", "list_missing", "composition")},
    **{
        f"merge.{name}": "tests/algorithms/merging/test_post_refinement.py"
        for name in ("post_refine", "refine_cell", "rotation_restraint", "width_restraint", "cell_restraint")
    },
    **{
        f"merge.groups.{name}": "tests/run/test_group_frames.py"
        for name in ("by", "table", "dataset", "column", "period", "edges", "bins", "reference")
    },
    **{f"merge.groups.{name}": "tests/run/test_groups.py" for name in ("differences", "scale_differences")},
    **{f"merge.ambiguity.{name}": "tests/run/test_ambiguity.py" for name in ("resolve", "max_obliquity", "reference", "undecided")},
    **{f"merge.ambiguity.{name}": "tests/algorithms/merging/test_ambiguity.py" for name in ("d_min", "starts", "min_probability")},
    **{f"metrology.{name}": "tests/run/test_stage_metrology.py" for name in ("enabled", "iterate", "max_move", "block_frames")},
    "index.min_misorientation": "tests/algorithms/indexing/test_index_known.py",
    "refine.max_satellites": "tests/algorithms/refinement/test_satellites.py",
}


def parameters(model: type[BaseModel], path: str) -> Iterator[str]:
    """Names of all parameters of a model: ``path.key``, and of methods ``path.method.NAME.key``."""
    for name, field in model.model_fields.items():
        members = union_members(field.annotation)
        if name == "method" and not members:
            continue
        if not members or any(map(method_of, members)):
            yield f"{path}.{name}"
        if path.endswith(".method.auto"):  # its keys are methods with entries of their own
            continue
        for member in members:
            method = method_of(member)
            yield from parameters(member, f"{path}.{name}.{method}" if method else f"{path}.{name}")


def test_every_parameter_is_here() -> None:
    known = {name for section, model in section_classes().items() for name in parameters(model, section)}
    assert known == set(OTHER) | set(TESTED_APART)
    assert all(name.rpartition(".")[2] in (ROOT / path).read_text() for name, path in TESTED_APART.items())


@dataclass(frozen=True)
class Scene:
    """Simulated frames."""

    source: FrameSource

    def results(self, job: dict[str, Any]) -> dict[str, str]:
        """Fingerprints of what a job yields of the frames up to integration, and of merging with the ``[merge]`` of the job."""
        sections = {name: model.model_validate(job.get(name, {})) for name, model in section_classes().items()}
        index: Any = sections["index"]
        target = CellTarget(index.cell, index.space_group) if index.cell else CellTarget()
        stills = Stills(*(sections[name] for name in ("calibrate", "spots", "index", "refine", "integrate")), target)  # type: ignore[arg-type]
        constants = stills.calibrate.constants(self.source.experiment(0).detector, self.source.static_mask())
        frames, parts = hashlib.sha256(), []
        for number in range(self.source.n_frames):
            found, _ = process(stills, self.source.read(number), constants)
            add(frames, found.status, found.reason, found.spots)
            for lattice in found.lattices:
                add(frames, lattice.crystal, lattice.shift, lattice.indexed)
            if found.integration is None:
                continue
            add(frames, found.integration.crystals, found.integration.d_min, found.integration.reflections)
            half = np.array([half_set("frames", 10 * number + k) for k in range(len(found.lattices))], dtype=np.uint8)
            parts.append(prepare(found.integration.reflections, half, sections["merge"]))  # type: ignore[arg-type]
        merged = hashlib.sha256()
        if "merge" in job:
            result = merge(parts, CELL, "P 43 21 2", sections["merge"])  # type: ignore[arg-type]
            add(merged, result.merged, result.unmerged, result.lattices, result.shells)
        return {"frames": frames.hexdigest(), "merged": merged.hexdigest()}


def add(digest: Any, *values: Any) -> None:
    for value in values:
        if isinstance(value, Table):
            for column in value.SCHEMA:
                digest.update(value[column.name].tobytes())
        else:
            digest.update(repr(value).encode())


def simulated(folder: Path, name: str, **changes: Any) -> Scene:
    return Scene(open_source(simulate(preset(name, **changes, detector=DETECTOR), folder).frames))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scene]:
    """Frames with two lattices, ice and dirt; and frames of a mosaic crystal, which may be taken for several."""
    mosaic = {"mosaicity": 0.3, "samples": 8}
    return {
        "": simulated(tmp_path_factory.mktemp("mixed"), "two_lattices", **SCENE),
        "refine.min_misorientation": simulated(tmp_path_factory.mktemp("mosaic"), "single", frames=3, crystal=mosaic),
    }


def job_of(values: dict[str, Any]) -> dict[str, Any]:
    """Nested tables of dotted keys; ``spots.method.dispersion.gain`` is the key ``gain`` of that method."""
    job: dict[str, Any] = {}
    for name, value in values.items():
        section, *path, key = name.split(".")
        table = job.setdefault(section, {})
        if path[:1] == ["method"]:
            table["method"] = {"method": path[1], key: value}
            continue
        for part in path:
            table = table.setdefault(part, {})
        if value is not None:
            table[key] = value
    return job


@pytest.mark.parametrize("name", OTHER)
def test_another_value_gives_another_result(scenes: dict[str, Scene], name: str) -> None:
    scene = scenes.get(name, scenes[""])
    value, context = OTHER[name]
    base = {"index.cell": CELL, "index.space_group": "P 43 21 2"} | context
    if name.startswith("merge."):
        base["merge.n_shells"] = 10
    method = name.rpartition(".")[0]
    if ".method." in name:
        base[f"{method}.method"] = method.rpartition(".")[2]
    assert cached(scene, base) != cached(scene, {**base, name: value})


def cached(scene: Scene, values: dict[str, Any]) -> dict[str, str]:
    return _results(scene, json.dumps(job_of(values)))


@cache
def _results(scene: Scene, job: str) -> dict[str, str]:
    return scene.results(json.loads(job))
