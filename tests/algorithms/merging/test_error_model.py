"""The error model finds what was planted, from sums that add up."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import check_grad

from xfelproc.algorithms.merging.error_model import SLOTS, ErrorModel, SamplePlan, fit_errors, sample_sums
from xfelproc.kernels.error_model import components, observation_variance, pair_likelihood
from xfelproc.simulation.observations import ObservationSimulator

CUT = 6.0


class Lattices:
    """Simulated lattices under models that are true but for planted errors of position and width."""

    def __init__(self, n: int, position: float = 0.0, width: float = 0.0, **settings: Any) -> None:
        simulator = ObservationSimulator.of(**({"d_min": 2.6} | settings))
        found = simulator.simulate(0, n)
        crystals, row, block = found.crystals, found.lattice, found.block()
        rng = np.random.default_rng(5)
        q2 = 1.0 / found.d.astype(np.float64) ** 2
        w2 = crystals.width[row] ** 2 + crystals.mosaicity[row] ** 2 * q2
        away = found.excitation / np.sqrt(w2) + position * rng.standard_normal(n)[row]
        self.n, self.starts, self.group = n, found.starts, found.number
        self.truth, self.centric = simulator.structure.mean, simulator.structure.centric
        self.plus = (found.isym % 2 == 1) | self.centric[found.number]
        self.count = np.bincount(found.number, minlength=len(self.truth)).astype(np.int32)
        partiality = np.exp(-0.5 * away**2 * np.exp(2.0 * width * rng.standard_normal(n)[row]))
        full = crystals.scale[row]
        names = ("intensity", "variance_fixed", "variance_gain")
        self.columns = (*(block[name] for name in names), full.astype(np.float32), partiality.astype(np.float32))

    def sample(self, plan: SamplePlan, lattices: slice) -> NDArray[Any]:
        """Return the sample of some lattices."""
        identity = np.arange(self.n)[lattices]
        starts = self.starts[lattices.start : lattices.stop + 1]
        rows = slice(starts[0], starts[-1])
        columns = tuple(column[rows] for column in self.columns)
        one, used = np.ones(len(identity)), np.ones(len(identity), dtype=bool)
        sums = sample_sums(plan, identity, starts - starts[0], self.group[rows], columns, one, used, self.plus[rows], 0.05)
        return sums["sample"]

    def fitted(self) -> ErrorModel:
        """Return the model fitted to all."""
        plan = SamplePlan.of(self.count, self.centric)
        return fit_errors(self.sample(plan, slice(0, self.n)), plan, self.truth, ErrorModel.initial(0.05, 0.03), CUT)


@pytest.mark.parametrize(
    ("term", "value", "planted"),
    [
        ("relative", 0.10, {"error_intensity": 0.10}),
        ("partiality", 0.03, {"error_partiality": 0.03}),
        ("position", 0.2, {"position": 0.2}),
        ("width", 0.1, {"width": 0.1}),
        ("counting", 2.0, {"sigma_factor": 0.5}),
    ],
)
def test_what_was_planted_is_found_and_nothing_else(term: str, value: float, planted: dict[str, Any]) -> None:
    found = Lattices(300, **planted).fitted().named
    # what an error of position or width does is linear in it only where the partiality is not small
    assert found[term] == pytest.approx(value, rel=0.2 if term in ("position", "width") else 0.15)
    others = {"relative", "partiality", "position", "width"} - {term}
    assert all(found[name] < 0.05 for name in others)
    assert found["counting"] == pytest.approx(value if term == "counting" else 1.0, rel=0.04)


def test_friedel_differences_are_no_errors() -> None:
    found = Lattices(300, anomalous=0.1).fitted().named
    assert found["relative"] < 0.03


def test_outliers_are_no_part_of_the_model() -> None:
    found = Lattices(300, error_intensity=0.05, outlier_observations=0.02).fitted().named
    assert found["relative"] == pytest.approx(0.05, rel=0.2)
    assert found["counting"] == pytest.approx(1.0, rel=0.04)


def test_the_sample_adds_up_and_is_bounded() -> None:
    lattices = Lattices(60)
    plan = SamplePlan.of(lattices.count, lattices.centric)
    whole = lattices.sample(plan, slice(0, 60))
    parts = lattices.sample(plan, slice(0, 25)) + lattices.sample(plan, slice(25, 60))
    np.testing.assert_allclose(parts, whole, rtol=1e-6)
    assert whole.shape[:2] == (plan.n_rows, SLOTS)
    assert plan.n_rows <= 2048
    assert np.count_nonzero(whole[:, :, 0] == 1) > 500


def test_too_few_pairs_leave_the_model_alone() -> None:
    start = ErrorModel.initial(0.05, 0.03)
    plan = SamplePlan.of(np.array([1, 1, 2], dtype=np.int32), np.ones(3, dtype=bool))
    assert fit_errors(np.zeros((1, SLOTS, 7), dtype=np.float32), plan, np.ones(3), start, CUT) is start
    nothing = SamplePlan.of(np.zeros(0, dtype=np.int32), np.zeros(0, dtype=bool))
    assert nothing.n_rows == 0


def test_arrays_go_there_and_back() -> None:
    model = ErrorModel(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), 7.0, 8)
    back = ErrorModel.from_arrays(model.arrays())
    assert back.named == model.named


def test_variance_is_the_sum_of_its_components() -> None:
    rng = np.random.default_rng(1)
    columns = np.column_stack([np.ones(20), rng.normal(size=20), *rng.uniform(0.1, 0.9, (5, 20))])
    expected, terms = rng.uniform(1, 5, 20), rng.uniform(0.1, 2.0, 5)
    parts = np.empty((20, 5))
    components(columns, expected, parts)
    k = columns[:, 4] * columns[:, 5]
    one = [observation_variance(*c[2:6], j, c[6], terms) for c, j in zip(columns, expected, strict=True)]
    np.testing.assert_allclose(parts @ terms * k**2, one)


def test_gradient_of_the_likelihood() -> None:
    rng = np.random.default_rng(2)
    starts = np.array([0, 1, 3, 7, 20])
    value, parts = rng.normal(size=20), rng.uniform(0.1, 1.0, (20, 5))
    by_terms = np.empty(5)

    def total(x: NDArray[np.float64]) -> float:
        return float(pair_likelihood(starts, value, parts, x[:5], x[5], by_terms)[0])

    def slopes(x: NDArray[np.float64]) -> NDArray[np.float64]:
        _, by_nu = pair_likelihood(starts, value, parts, x[:5], x[5], by_terms)
        return np.append(by_terms, by_nu)

    assert check_grad(total, slopes, np.array([0.3, 0.5, 1.0, 0.7, 0.2, 4.0])) < 1e-5
