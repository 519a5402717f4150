from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfelproc.run.campaign.estimate import Estimate, spread_over, typical


@given(st.integers(0, 10_000), st.integers(1, 100))
def test_spread_is_even(n: int, wanted: int) -> None:
    chosen = spread_over(n, wanted)
    assert len(chosen) == min(n, wanted)
    assert all(0 <= i < n for i in chosen)
    if len(chosen) > 1:
        steps = np.diff(chosen)
        assert steps.max() - steps.min() <= 1


def test_frames_that_compile_do_not_count() -> None:
    assert typical(np.array([2000.0, 4.0, 6.0, 5.0, 5.0])) == pytest.approx(5.0)


def test_core_hours() -> None:
    cost = Estimate({"a": 1.0, "b": 3.0, "c": 2.0}, 3600, {})
    assert (cost.core_hours, cost.spread) == (2.0, (1.0, 3.0))
    assert Estimate({}, 3600, {}).core_hours is None
