"""The sample of lattices that an ambiguity is resolved with, and reference intensities."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from tests.algorithms.merging.ambiguity_data import CASES, draw
from xfelproc.algorithms.merging.ambiguity_operators import DEN, find_settings
from xfelproc.algorithms.merging.ambiguity_reference import reference_mean
from xfelproc.algorithms.merging.ambiguity_sample import COLUMNS, LatticeSample, nearest
from xfelproc.algorithms.merging.observations import Observations
from xfelproc.algorithms.merging.sample import priorities


@pytest.fixture(scope="module")
def observations() -> Observations:
    return draw("P 63", find_settings(CASES["P 63"], "P 63").matrices / DEN, 60, 30).observations


def part(observations: Observations, first: int, last: int) -> Observations:
    rows = observations.select((observations.lattice >= first) & (observations.lattice < last))
    columns = {name: getattr(rows, name) for name in rows.__dataclass_fields__}
    return Observations(**columns | {"lattice": rows.lattice - first, "half": rows.half[first:last], "n_lattices": last - first})


@pytest.mark.parametrize("most", [500, 10_000])
def test_the_sample_of_parts_is_that_of_all(observations: Observations, most: int) -> None:
    priority = priorities(0, 60)
    whole = LatticeSample.of(observations, priority, most)
    some = [LatticeSample.of(part(observations, a, b), priority[a:b], most) for a, b in ((0, 20), (20, 21), (21, 60))]
    joined = some[0].with_more(some[1], most).with_more(some[2], most)
    assert np.array_equal(joined.priority, whole.priority)
    assert all(np.array_equal(joined.columns[name], whole.columns[name]) for name in COLUMNS)
    assert len(whole.priority) == (17 if most == 500 else 60)
    again = LatticeSample.from_arrays(whole.arrays()).observations()
    assert again.n_lattices == len(whole.priority)
    chosen = np.flatnonzero(np.isin(priority, whole.priority))
    rows = np.isin(observations.lattice, chosen)
    assert np.array_equal(again.hkl, observations.hkl[rows])
    assert again.intensity == pytest.approx(observations.intensity[rows])


def test_the_nearest_observations_are_kept(observations: Observations) -> None:
    kept = nearest(observations, 10)
    assert np.array_equal(np.bincount(kept.lattice), np.full(60, 10))
    for lattice in range(60):
        offered = np.sort(np.abs(observations.excitation[observations.lattice == lattice]))
        assert np.array_equal(np.sort(np.abs(kept.excitation[kept.lattice == lattice])), offered[:10])
    assert nearest(observations, 30) is observations


def test_reference_is_normalised_by_resolution() -> None:
    settings, rng = find_settings(CASES["P 4"], "P 4"), np.random.default_rng(1)
    hkl = np.array(list(product(range(15), range(1, 15), range(15))), dtype=np.int32)
    inverse_d2 = np.sum((hkl / [60.0, 60.0, 90.0]) ** 2, axis=1)
    e2 = rng.exponential(size=len(hkl))
    intensity = 300.0 * np.exp(-40.0 * inverse_d2) * e2
    mean = reference_mean(hkl, intensity, np.zeros(len(hkl)), inverse_d2, settings)
    at = np.searchsorted(mean.keys, settings.keys(hkl))
    found = mean.sums[at, 1] / mean.sums[at, 0] + 1.0
    strong = e2 < 6.0
    assert np.mean(np.abs(found[strong] / e2[strong] - 1.0) < 0.3) > 0.98
    assert np.corrcoef(found, e2)[0, 1] > 0.98
    twice = reference_mean(np.tile(hkl, (2, 1)), np.tile(intensity, 2), np.zeros(2 * len(hkl)), np.tile(inverse_d2, 2), settings)
    assert twice.sums[:, 0] == pytest.approx(mean.sums[:, 0]), "equivalents are no second word"
    with pytest.raises(ValueError, match="0 reflections"):
        reference_mean(hkl, np.full(len(hkl), np.nan), np.zeros(len(hkl)), inverse_d2, settings)
