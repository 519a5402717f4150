from __future__ import annotations

import numpy as np
import pytest

from tests.algorithms.refinement.test_stills import BEAM, DETECTOR, simulate, start_from
from xfelproc.algorithms.refinement import Refine
from xfelproc.geometry.cells import misorientation, rotation_matrix
from xfelproc.geometry.prediction import predict_still
from xfelproc.models.experiment import Crystal, as_matrix
from xfelproc.models.frames import RefinedLattice
from xfelproc.models.tables import SpotTable


def split(seed: int, angle: float, n: int, false: int = 0) -> tuple[Crystal, Crystal, SpotTable]:
    """Return a crystal, a part of it turned by ``angle`` degrees that gives ``n`` spots, and the spots of both."""
    crystal, spots = simulate(seed, 250)
    rng = np.random.default_rng(seed + 1000)
    turn = rng.normal(size=3)
    a = rotation_matrix(np.radians(angle) * turn / np.linalg.norm(turn)) @ crystal.a_matrix
    part = Crystal(as_matrix(a), crystal.space_group, 1500.0, 0.02)
    table = predict_still(part, DETECTOR, BEAM, 2.0)
    table = table.select(np.sort(rng.permutation(len(table))[:n]))
    columns = {
        "fast": np.concatenate([spots["fast"], table["fast"] + 0.1 * rng.normal(size=len(table)), rng.uniform(0, 2000, false)]),
        "slow": np.concatenate([spots["slow"], table["slow"] + 0.1 * rng.normal(size=len(table)), rng.uniform(0, 2000, false)]),
        "snr": np.concatenate([spots["snr"], np.full(len(table), 10.0), rng.uniform(5, 40, false)]),
    }
    return crystal, part, SpotTable(None, panel=np.zeros(len(columns["fast"])), **columns)


def lattices_of(refine: Refine, crystal: Crystal, spots: SpotTable) -> tuple[RefinedLattice, ...]:
    return refine.separate([refine.refine(start_from(crystal, 1, 0.05), spots, DETECTOR, BEAM)], spots, DETECTOR, BEAM)


@pytest.mark.parametrize(("angle", "satellite"), [(0.45, True), (1.1, False)])
def test_part_of_a_split_crystal(angle: float, satellite: bool) -> None:
    for seed in range(4):
        crystal, part, spots = split(seed, angle, 80)
        found = lattices_of(Refine(), crystal, spots)
        assert len(found) == 2
        assert [x.satellite for x in found] == [False, satellite]
        assert misorientation(found[0].crystal.a_matrix, crystal.a_matrix) < 0.01
        assert misorientation(found[1].crystal.a_matrix, part.a_matrix) < 0.02
        shared = set(found[0].indexed["spot"].tolist()) & set(found[1].indexed["spot"].tolist())
        assert not shared
        used = found[1].indexed.select(found[1].indexed["used"])
        assert np.count_nonzero(used["spot"] >= 250) >= 60
        alone = lattices_of(Refine(max_satellites=0), crystal, spots)
        assert len(alone) == 1
        assert alone[0].rmsd > found[0].rmsd


def test_spots_of_no_lattice_are_no_satellite() -> None:
    for seed in range(6):
        crystal, _, spots = split(seed, 0.5, 0, false=150)
        assert len(lattices_of(Refine(), crystal, spots)) == 1


def test_wings_of_a_lattice_are_no_satellite() -> None:
    for seed in range(6):
        crystal, spots = simulate(seed, 400)
        rng = np.random.default_rng(seed)
        wings = rng.standard_t(2.0, size=(2, len(spots))) * 0.5
        broad = spots.replace(fast=spots["fast"] + wings[0], slow=spots["slow"] + wings[1])
        assert len(lattices_of(Refine(), crystal, broad)) == 1
