from __future__ import annotations

import json
from typing import Any

from tests.algorithms.downstream.wilson_data import simulated
from xfelproc.algorithms.downstream.analysis import analyse
from xfelproc.algorithms.downstream.record import record_of
from xfelproc.report.intensities import intensities_section


def plot(figure: Any) -> str:
    return f"[{','.join(trace.name or '' for trace in figure.data)}]"


def section(**options: Any) -> str:
    data = simulated(**{"cell": (60.0, 60.0, 70.0, 90.0, 90.0, 120.0), "space_group": "P 3", "d_min": 3.2, **options})
    record = json.loads(json.dumps(record_of(analyse(data.merged, data.cell, data.group)[1]), allow_nan=False))
    record["free"] = {"from": "old.mtz", "n_known": 1000, "n_test": 77}
    return intensities_section(record, [{"name": "R_split (%)", "overall": "5.00", "outermost": "30.0"}], plot)


def test_section_shows_plots_laws_axes_and_table() -> None:
    text = section(twin=(1, 0.3))
    assert "<td class='text'>R_split (%)</td><td>5.00</td><td>30.0</td>" in text
    assert "Wilson B" in text
    assert "[untwinned,twinned perfectly,found]" in text
    assert "[shells,B = " in text
    assert text.count("merohedral") == 3
    assert "<td>0.29" in text or "<td>0.30" in text
    assert "a*" in text
    assert "principal 1" in text
    assert "1,000 reflections have those of the given file; test set 77" in text


def test_section_of_too_few_data_has_the_table_alone() -> None:
    text = section(d_min=22.0)
    assert "Table 1" in text
    assert "Intensities" not in text
    assert intensities_section({}, [], plot) == ""


def test_section_of_noise_leaves_out_what_is_not_known() -> None:
    text = section(noise=30.0, d_min=4.0)
    assert "L-test" not in text
    assert "Anisotropy" in text
