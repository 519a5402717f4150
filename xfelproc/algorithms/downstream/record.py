"""An analysis as plain values, for `merge.json` and the report."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from xfelproc.algorithms.downstream.analysis import Analysis
from xfelproc.algorithms.downstream.mean_intensity import MeanIntensity


def record_of(analysis: Analysis) -> dict[str, Any]:
    """Return an analysis as values that JSON holds; numbers that are not finite become None."""
    return {
        "mean_intensity": _mean(analysis.mean),
        "wilson": _plain(analysis.wilson),
        "moments": _plain(analysis.moments),
        "l_test": _plain(analysis.l_test),
        "twin_laws": [_plain(law) for law in analysis.twin_laws],
        "anisotropy": _plain(analysis.anisotropy),
        "translation": _plain(analysis.translation),
        "n_rejected": analysis.n_rejected,
        "warnings": list(analysis.warnings),
    }


def _mean(mean: MeanIntensity | None) -> dict[str, Any] | None:
    if mean is None:
        return None
    return {"converged": mean.converged, "knots": _values(mean.knots), "coefficients": _values(mean.coefficients)}


def _plain(value: Any) -> Any:
    """Return a dataclass as a mapping of plain values, None as None."""
    return None if value is None else _values(asdict(value))


def _values(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _values(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray):
        return _values(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_values(inner) for inner in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value
