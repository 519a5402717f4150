"""Robust losses: weights and slopes against finite differences."""

from __future__ import annotations

import pytest

from xfelproc.kernels.robust import influence_slope, robust


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_weights_are_derivatives_of_the_loss(kind: int) -> None:
    for residual in (0.1, 0.9, 2.0, 3.5):
        bound = 2.5
        weight, _ = robust(residual**2, bound, kind)
        losses = [robust((residual + d) ** 2, bound, kind)[1] for d in (1e-6, -1e-6)]
        assert weight * residual == pytest.approx((losses[0] - losses[1]) / 2e-6, abs=1e-6)
        slopes = [robust((residual + d) ** 2, bound, kind)[0] * (residual + d) for d in (1e-6, -1e-6)]
        assert influence_slope(residual**2, bound, kind, 1.0) == pytest.approx((slopes[0] - slopes[1]) / 2e-6, abs=1e-5)
