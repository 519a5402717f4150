"""The report's section on lattices that were left out."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from xfelproc.algorithms.merging.filters import CAUSES, SAID
from xfelproc.algorithms.merging.lattice_models import Reason
from xfelproc.models.tables import ScaledLatticeTable
from xfelproc.report.left_out import OBSERVATIONS, left_out_section
from xfelproc.report.words import LEFT_OUT, left_out
from xfelproc.run.merge_lattices import LatticeSummary, histogram


def plot(figure: Any) -> str:
    return f"[{'; '.join(trace.name for trace in figure.data)}]"


def lattices(n: int = 400) -> ScaledLatticeTable:
    rng = np.random.default_rng(1)
    reason = np.where(np.arange(n) % 50 == 3, Reason.ENERGY, np.where(np.arange(n) >= 380, Reason.STRETCH, Reason.USED))
    return ScaledLatticeTable(
        n,
        unit=np.arange(n) // 10,
        lattice=np.arange(n) % 10,
        reason=reason,
        used=reason == Reason.USED,
        energy=9500 + 10 * rng.standard_normal(n),
        mahalanobis=np.abs(rng.standard_normal(n)),
        delta_cc_half=np.where(np.arange(n) == 7, -0.5, 1e-4 * rng.standard_normal(n)),
        correlation=np.full(n, np.nan),
    )


def record() -> dict[str, Any]:
    summary = LatticeSummary(40)
    for rows in (slice(0, 150), slice(150, 400)):
        summary.add(lattices().select(rows))
    found = summary.record() | {"observations": {"flagged": 12, "panel": 3456, "edge": 0, "significance": 0}}
    rows = [{"first": 38, "end": 40, "lattices": 20, "delta_cc_half": -2e-3, "left_out": True}]
    return json.loads(json.dumps(found | {"stretches": rows}, allow_nan=False))


def test_section_counts_draws_and_lists() -> None:
    text = left_out_section({"few": 0, "energy": 8, "stretch": 20}, record(), plot)
    assert "28 of 400 lattices (7.0 %) were left out" in text
    assert "<td class='text'>another photon energy</td><td>8</td>" in text
    assert "<td class='text'>on panels left out</td><td>3,456</td>" in text
    assert "too few" not in text
    assert "[another photon energy; of a stretch without which CC1/2 is better]" in text
    assert "[merged; left out; merged; left out; merged; left out]" in text
    assert "<td class='text'>units 38-39</td><td>20</td><td>-2.00e-03</td><td>left out</td>" in text
    assert left_out_section({}, {}, plot) == ""


def test_summary_is_of_all_lattices() -> None:
    found = record()
    assert found["along"]["lattices"] == [10] * 40
    assert found["along"]["left_out"]["stretch"] == [0] * 38 + [10] * 2
    assert found["lowest_delta_cc_half"][0] == {"unit": 0, "lattice": 7, "delta_cc_half": -0.5, "reason": "used"}
    shown = found["histograms"]
    assert shown["correlation"] is None
    assert sum(shown["energy"]["kept"]) + sum(shown["energy"]["left_out"]) == 400
    assert sum(shown["delta_cc_half"]["kept"][:1]) >= 1, "what is beyond is in the last bins"
    assert histogram(np.zeros(5), np.ones(5, dtype=bool)) is None


def test_every_reason_has_words() -> None:
    assert set(LEFT_OUT) == {reason.name.lower() for reason in SAID} == {reason.name.lower() for reason in Reason if reason}
    assert set(OBSERVATIONS) == set(CAUSES)
    assert left_out({"few": 2, "energy": 0, "stretch": 1}, 50) == (
        "left out 3 of 50 lattices: 2 too few observations, 1 of a stretch without which CC1/2 is better"
    )
    assert left_out({"few": 0}, 50) == ""
