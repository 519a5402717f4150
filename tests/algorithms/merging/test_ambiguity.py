"""Ambiguities resolved, and left where there is nothing to go by."""

from __future__ import annotations

from typing import Any

import gemmi
import numpy as np
import pytest

from tests.algorithms.merging.ambiguity_data import CASES, Drawn, draw
from xfelproc.algorithms.merging import ambiguity_solve
from xfelproc.algorithms.merging.ambiguity import Doubt, Resolution, agreement, place, resolve
from xfelproc.algorithms.merging.ambiguity_data import Normalized, concatenated, normalized
from xfelproc.algorithms.merging.ambiguity_operators import DEN, Settings, find_settings
from xfelproc.algorithms.merging.ambiguity_settings import Ambiguity
from xfelproc.algorithms.merging.observations import corrected
from xfelproc.algorithms.merging.sample import Beginning, Sample, begin, priorities
from xfelproc.algorithms.merging.settings import Merge
from xfelproc.simulation.observations import ObservationSimulator

MERGE = Merge(partiality="unity", min_partiality=0.0)
PARTIAL = Merge()


def prepared(group: str, *, merge: Merge = MERGE, **options: Any) -> tuple[Settings, Drawn, Normalized]:
    settings = find_settings(CASES[group], group)
    drawn = draw(group, settings.matrices / DEN, **options)
    return settings, drawn, normalized(drawn.observations, beginning(drawn, group, merge), merge)


def beginning(drawn: Drawn, group: str, merge: Merge) -> Beginning:
    sample = Sample.of(drawn.observations, priorities(0, drawn.observations.n_lattices))
    return begin(sample, merge)


def right(settings: Settings, drawn: Drawn, found: Resolution) -> np.ndarray:
    return max((row[drawn.setting] == found.placed.setting for row in settings.relabelings()), key=np.mean)


@pytest.mark.parametrize(
    ("group", "n"), [("P 63", 1000), ("P 3", 1000), ("P 4", 1000), ("C 1 2 1", 1000), ("P 1 21 1", 300), ("P 21 21 21", 300)]
)
def test_lattices_of_sixty_observations(group: str, n: int) -> None:
    settings, drawn, data = prepared(group, n_lattices=n)
    found = resolve(data, settings, Ambiguity())
    assert found.resolved
    assert found.same == ()
    assert agreement(settings, drawn.setting, found.placed.setting) >= 0.99
    assert np.mean(found.placed.doubt == Doubt.NONE) > 0.98


def test_partiality_helps() -> None:
    settings, drawn, data = prepared("P 63", merge=PARTIAL, n_lattices=300, n_each=60, misjudged=0.5)
    found = resolve(data, settings, Ambiguity())
    assert np.mean(right(settings, drawn, found)) >= 0.99


@pytest.mark.parametrize("group", ["P 63", "P 3"])
def test_few_observations_of_many_reflections(group: str) -> None:
    """A reflection is seen by a few lattices alone, and two lattices have one or none in common."""
    settings, drawn, data = prepared(group, d_min=2.5)
    found = resolve(data, settings, Ambiguity())
    assert len(found.mean.keys) > 6000
    assert np.mean(right(settings, drawn, found)) >= 0.99


@pytest.mark.parametrize("group", ["P 63", "P 3"])
def test_unequal_shares(group: str) -> None:
    weights = (0.9, 0.1) if group == "P 63" else (0.9, 0.05, 0.03, 0.02)
    settings, drawn, data = prepared(group, weights=weights, n_lattices=500)
    found = resolve(data, settings, Ambiguity())
    assert np.mean(right(settings, drawn, found)) >= 0.99
    assert np.mean(found.placed.setting == 0) == pytest.approx(0.9, abs=0.03), "most lattices stay as they were indexed"


def test_all_in_one_setting() -> None:
    settings, _, data = prepared("P 4", weights=(1.0, 0.0), n_lattices=300)
    found = resolve(data, settings, Ambiguity())
    assert found.resolved
    assert np.mean(found.placed.setting == 0) >= 0.99


def test_twinned_crystals() -> None:
    settings, drawn, data = prepared("P 63", twinned=0.3, n_lattices=500)
    found = resolve(data, settings, Ambiguity())
    assert np.mean(right(settings, drawn, found)) >= 0.98
    settings, _, data = prepared("P 63", twinned=0.5, n_lattices=500)
    assert not resolve(data, settings, Ambiguity()).resolved


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("group", ["P 63", "P 3"])
@pytest.mark.parametrize("n", [12, 300])
def test_noise_is_not_resolved(group: str, seed: int, n: int) -> None:
    settings, _, data = prepared(group, noise=True, n_lattices=n, seed=seed)
    found = resolve(data, settings, Ambiguity())
    assert not found.resolved
    assert found.significance < 5.0
    assert np.all(found.placed.setting == 0)
    assert np.all(found.placed.doubt != Doubt.NONE)
    assert np.all(np.isnan(found.placed.probability))


def test_nothing_but_background() -> None:
    settings, _, data = prepared("P 63", signal=0.0, n_lattices=200)
    assert not resolve(data, settings, Ambiguity()).resolved


def test_unrelated_lattices_are_told() -> None:
    settings, drawn, data = prepared("P 63", merge=PARTIAL, unrelated=0.2, n_lattices=400)
    found = resolve(data, settings, Ambiguity())
    doubt = found.placed.doubt
    assert np.mean(doubt == Doubt.UNRELATED) == pytest.approx(0.2, abs=0.03)
    assert np.mean(right(settings, drawn, found)[doubt == Doubt.NONE]) >= 0.99


def test_weak_lattices_are_undecided_and_probabilities_are_true() -> None:
    settings, drawn, data = prepared("P 63", merge=PARTIAL, n_each=16, misjudged=0.7)
    found = resolve(data, settings, Ambiguity())
    placed, good = found.placed, right(settings, drawn, found)
    undecided = placed.doubt == Doubt.UNDECIDED
    assert 10 < undecided.sum() < 200
    assert np.mean(good[undecided]) < 0.9
    assert np.mean(good[~undecided]) > 0.98
    assert np.mean(good) == pytest.approx(np.mean(placed.probability), abs=0.02)
    assert np.mean(placed.margin[good]) > 1.0 + np.nanmean(placed.margin[~good])


def test_few_lattices() -> None:
    settings, drawn, data = prepared("P 63", merge=PARTIAL, n_lattices=10, n_each=300)
    found = resolve(data, settings, Ambiguity())
    assert found.resolved
    assert right(settings, drawn, found).all()


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_lattices(n: int) -> None:
    settings, drawn, _ = prepared("P 63", n_lattices=10, n_each=300)
    data = normalized(drawn.observations, beginning(drawn, "P 63", MERGE), MERGE)
    some = Normalized(data.starts[: n + 1], *(getattr(data, name)[: data.starts[n]] for name in ("hkl", "value", "variance")))
    found = resolve(some, settings, Ambiguity())
    assert not found.resolved
    assert len(found.placed.setting) == n


def test_symmetry_that_the_user_did_not_state_is_left() -> None:
    """Crystals of P 6 merged in P 3: the twofold is no choice, the other operators are."""
    six, three = find_settings(CASES["P 63"], "P 6"), find_settings(CASES["P 3"], "P 3")
    drawn = draw("P 6", six.matrices / DEN, cell=CASES["P 3"])
    data = normalized(drawn.observations, beginning(drawn, "P 3", MERGE), MERGE)
    found = resolve(data, three, Ambiguity())
    assert found.resolved
    assert found.same == ("-h,-k,l",)
    assert len(found.settings) == 2
    assert agreement(six, drawn.setting, found.placed.setting) >= 0.99
    nothing = resolve(data, find_settings(CASES["P 3"], "P 6").merged([]), Ambiguity())
    assert nothing.resolved


def test_lattices_that_come_later_are_placed() -> None:
    settings, drawn, data = prepared("P 3")
    half = data.starts[500]
    names = ("hkl", "value", "variance")
    first = Normalized(data.starts[:501], *(getattr(data, name)[:half] for name in names))
    second = Normalized(data.starts[500:] - half, *(getattr(data, name)[half:] for name in names))
    found = resolve(first, settings, Ambiguity())
    later = place(second, found, Ambiguity())
    assert np.mean(later.doubt == Doubt.NONE) > 0.98
    assert agreement(settings, drawn.setting, np.concatenate([found.placed.setting, later.setting])) >= 0.99
    both = concatenated([first, second])
    assert all(np.array_equal(getattr(both, name), getattr(data, name)) for name in ("starts", *names))
    nowhere = place(second, resolve(prepared("P 3", noise=True, n_lattices=50)[2], settings, Ambiguity()), Ambiguity())
    assert np.all(nowhere.doubt != Doubt.NONE)


def test_a_lattice_without_observations_is_told() -> None:
    settings, _, data = prepared("P 63", n_lattices=100)
    empty = Normalized(np.insert(data.starts, 50, data.starts[50]), data.hkl, data.value, data.variance)
    found = resolve(empty, settings, Ambiguity())
    assert found.resolved
    assert found.placed.doubt[50] == Doubt.EMPTY
    assert np.isnan(found.placed.probability[50])
    assert np.count_nonzero(found.placed.doubt == Doubt.EMPTY) == 1


def test_all_settings_are_merged_in_the_start() -> None:
    """The only start has half of the lattices in the wrong setting: a mean as of perfect twins."""
    settings, drawn, data = prepared("P 63", n_lattices=500)
    found = resolve(data, settings, Ambiguity(starts=1))
    assert found.resolved
    assert np.mean(right(settings, drawn, found)) >= 0.99


@pytest.mark.parametrize("starts", [1, 4])
def test_starts(starts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made, start = [], ambiguity_solve._start
    monkeypatch.setattr(ambiguity_solve, "_start", lambda *given: made.append(given[1]) or start(*given))
    settings, _, data = prepared("P 63", n_lattices=50)
    resolve(data, settings, Ambiguity(starts=starts))
    assert made == [*range(starts)] * 2


def test_probability_below_which_a_lattice_is_undecided() -> None:
    settings, _, data = prepared("P 63", n_each=16, misjudged=0.7, n_lattices=500)
    loose, strict = (resolve(data, settings, Ambiguity(min_probability=p)).placed for p in (0.6, 0.999))
    assert np.array_equal(loose.probability, strict.probability)
    for placed, limit in ((loose, 0.6), (strict, 0.999)):
        assert np.array_equal(placed.doubt == Doubt.UNDECIDED, (placed.probability < limit) & (placed.doubt != Doubt.UNRELATED))
    assert np.count_nonzero(strict.doubt) > 2 * np.count_nonzero(loose.doubt)


def test_reflections_beyond_d_min_have_no_say() -> None:
    _, drawn, data = prepared("P 63", n_lattices=50)
    shared = beginning(drawn, "P 63", MERGE)
    some = normalized(drawn.observations, shared, MERGE, d_min=5.0)
    lengths = 1.0 / np.sqrt(np.array(gemmi.UnitCell(*CASES["P 63"]).calculate_1_d2_array(some.hkl)))
    assert lengths.min() == pytest.approx(5.0, rel=0.05)
    assert lengths.min() >= 5.0
    assert len(some.value) < 0.7 * len(data.value)


def test_mean_of_normalised_intensities_is_one_at_any_resolution() -> None:
    """Widths grow with 1/d by mosaicity: what the model makes of that must not be left in E²."""
    found = ObservationSimulator.of(space_group="P 4", reach=1.5, mosaicity=2e-3, d_min=3.0).simulate(0, 150)
    observations = corrected(found.table(), found.crystals.half)
    sample = Sample.of(observations, priorities(0, 150))
    data = normalized(observations, begin(sample, PARTIAL), PARTIAL)
    cell = gemmi.UnitCell(79.1, 79.1, 38.0, 90.0, 90.0, 90.0)
    order = np.argsort(cell.calculate_1_d2_array(data.hkl))
    for part in np.array_split(order[len(order) // 20 :], 6):
        assert np.mean(data.value[part]) == pytest.approx(0.0, abs=0.12)


def test_the_same_again() -> None:
    settings, _, data = prepared("P 3", n_lattices=300)
    one, two = (resolve(data, settings, Ambiguity()) for _ in range(2))
    assert np.array_equal(one.placed.setting, two.placed.setting)
    assert np.array_equal(one.placed.probability, two.placed.probability)
    assert np.array_equal(one.mean.sums, two.mean.sums)
