from __future__ import annotations

import numpy as np
import pytest

from xfelproc.models.conventions import FrameStatus
from xfelproc.models.experiment import Detector, Panel
from xfelproc.models.frames import UnitResult
from xfelproc.models.reasons import general_reason
from xfelproc.models.tables import FrameTable, IndexedTable, LatticeTable, ReflectionTable, SpotTable
from xfelproc.report import FrameView, ReportData, RunSummary, build_report
from xfelproc.report.images import assemble, canvas_of


def detector(n: int = 2) -> Detector:
    return Detector(
        tuple(Panel(f"p{k}", (1, 0, 0), (0, -1, 0), (-20.0 + 25 * k, 10.0, -100.0), (0.1, 0.1), (200, 200)) for k in range(n))
    )


def unit() -> UnitResult:
    status = [FrameStatus.INTEGRATED, FrameStatus.BLANK, FrameStatus.HIT, FrameStatus.FAILED]
    frames = FrameTable(
        status=status,
        reason=["", "found 3 spots, 10 needed", "found 12 spots of 80 <b>", "unreadable"],
        n_spots=[2, 3, 80, 0],
        index=range(4),
    )
    spots = SpotTable(frame=[0, 0], panel=[0, 1], fast=[10.5, 60.0], slow=[20.5, 70.0])
    lattices = LatticeTable(frame=[0], cell=[[79, 79, 38, 90, 90, 90]], n_indexed=[2], rmsd=[0.3])
    indexed = IndexedTable(spot=[0, 1], lattice=[0, 0], fast_calc=[10.4, 60.2], slow_calc=[20.5, 70.1])
    return UnitResult(frames, spots, lattices, indexed, ReflectionTable(5))


def summary() -> RunSummary:
    folded = RunSummary(detector())
    folded.add(0, unit())
    folded.add(1, unit())
    return folded


def test_summary_counts_frames_and_reasons() -> None:
    folded = summary()
    assert folded.unit_frames == [4, 4]
    assert folded.unit_hits == [2, 2]
    assert folded.reasons["found … spots, … needed"] == 2
    assert folded.status["FAILED"] == 2
    assert folded.spot_map.sum() == 4
    assert folded.residual_sum[0, 0, 0, :2] == pytest.approx([2, 0.2])
    assert [label for label, _, _ in folded.chosen_frames()][:1] == ["best"]


def test_general_reason_drops_numbers() -> None:
    assert general_reason("RMSD 1.25 px over 3e-4") == "RMSD … px over …"


def test_assembled_pixels_are_where_the_detector_says() -> None:
    stack = np.zeros((2, 200, 200))
    stack[1, 50, 30] = 7.0
    canvas = canvas_of(detector(), 2000)
    picture = assemble(detector(), stack, None, canvas)
    row, column = np.argwhere(picture == 7.0)[0]
    assert column == pytest.approx((25 + 3.05) / 0.1, abs=1)
    assert row == pytest.approx(50.5, abs=1)


def test_report_is_self_contained_and_escapes() -> None:
    shell = {
        "d_max": 30.0,
        "d_min": 2.0,
        "n_observations": 10,
        "n_unique": 5,
        "completeness": 0.5,
        "multiplicity": 2.0,
        "i_over_sigma": 3.0,
        "cc_half": 0.9,
        "cc_star": 0.97,
        "r_split": 0.1,
    }
    rng = np.random.default_rng(0)
    view = FrameView(
        "frame 3: best",
        detector(),
        rng.poisson(3, (2, 200, 200)),
        np.ones((2, 200, 200), bool),
        np.array([[0, 10.0, 20.0]]),
        np.empty((0, 3)),
    )
    text = build_report(
        ReportData(
            "run <x>",
            summary(),
            (79, 79, 38, 90, 90, 90),
            "cell given",
            "P 43 21 2",
            shells=[shell],
            overall=shell,
            frames=[view],
            warnings=["ambiguity <unresolved>"],
            maximum=np.ones((2, 200, 200)),
            times={"merging": 1.0},
        )
    )
    assert "<script src=" not in text
    assert "run &lt;x&gt;" in text
    assert "ambiguity &lt;unresolved&gt;" in text
    assert text.count("base64,iVBOR") >= 4


def test_report_of_a_run_without_hits() -> None:
    empty = RunSummary(detector(1))
    result = UnitResult(FrameTable(status=[1], reason=["no spots"]), SpotTable(), LatticeTable(), IndexedTable(), ReflectionTable())
    empty.add(0, result)
    assert "0.0 % of frames" in build_report(ReportData("blank", empty, None, "", ""))
