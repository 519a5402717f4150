from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from xfelproc.models.conventions import FrameStatus
from xfelproc.models.experiment import Detector, Panel
from xfelproc.models.frames import UnitResult
from xfelproc.models.reasons import general_reason
from xfelproc.models.tables import FrameTable, IndexedTable, LatticeTable, ReflectionTable, SpotTable
from xfelproc.report.figures import histogram, shells, spots_and_rmsd
from xfelproc.report.fold import ReportFold
from xfelproc.report.images import assemble, canvas_of, png
from xfelproc.report.page import FrameView, ReportData, build_report
from xfelproc.report.summary import RunSummary


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
    indexed = IndexedTable(spot=[0, 1], lattice=[0, 0], fast_calc=[10.4, 60.2], slow_calc=[20.5, 70.1], used=[True, True])
    return UnitResult(frames, spots, lattices, indexed, ReflectionTable(5))


def summary_of(*units: UnitResult, panels: int = 2) -> RunSummary:
    fold = ReportFold(detector(panels), len(units))
    partial = fold.empty()
    for number, result in enumerate(units):
        partial = fold.combine(partial, fold.of_unit(number, result))
    return RunSummary(fold, partial, np.cumsum([0, *(len(u.frames) for u in units)]))


def summary() -> RunSummary:
    return summary_of(unit(), unit())


def test_summary_counts_frames_and_reasons() -> None:
    folded = summary()
    assert folded.bin_frames.tolist() == [4, 4]
    assert folded.first_frames.tolist() == [0, 4]
    assert folded.bin_hits.tolist() == [2, 2]
    assert folded.reasons["found … spots, … needed"] == 2
    assert folded.examples["found … spots, … needed"] == "found 3 spots, 10 needed (source 0, frame 1)"
    assert folded.status["FAILED"] == 2
    assert folded.spot_map.sum() == 4
    assert folded.residual_sum[0, 0, 0, :2] == pytest.approx([2, 0.2])
    assert folded.chosen_frames() == [("best", 0, 0), ("hit, not indexed", 0, 2), ("hit, not indexed", 1, 2)]


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
            indexing={"ambiguous": True, "resolved": False, "operators": [{"operator": "h,k,l"}, {"operator": "-h,k,-l"}]},
            frames=[view],
            warnings=["ambiguity <unresolved>"],
            maximum=np.ones((2, 200, 200)),
            left_out=[("/data/<a>.h5", 7, "its worker died twice at this frame: left out")],
            times={"merging": 1.0},
        )
    )
    assert "<script src=" not in text
    assert "run &lt;x&gt;" in text
    assert "ambiguity &lt;unresolved&gt;" in text
    assert "Indexing ambiguity -h,k,-l: not resolved" in text
    assert text.count("base64,iVBOR") >= 4
    assert "/data/&lt;a&gt;.h5" in text
    assert text.count("<h3>frame 3: best</h3>") == 1
    assert '"title":{"font"' not in text.partition("<body>")[2], "titles are above the plots, not under their buttons"
    assert text.count("plotly.js v") <= 2, "the library is there once"


def test_report_of_a_run_without_hits() -> None:
    result = UnitResult(FrameTable(status=[1], reason=["no spots"]), SpotTable(), LatticeTable(), IndexedTable(), ReflectionTable())
    assert "0.0 % of frames" in build_report(ReportData("blank", summary_of(result, panels=1), None, "", ""))


def test_shells_without_data_have_dashes() -> None:
    nan = float("nan")
    shell = dict.fromkeys(("d_max", "d_min"), 2.0) | dict.fromkeys(("n_observations", "n_unique"), 0) | {"completeness": 0.0}
    shell |= dict.fromkeys(("multiplicity", "i_over_sigma", "cc_half", "cc_star", "r_split"), nan)
    body = build_report(ReportData("x", summary(), None, "", "", shells=[shell], overall=shell)).rpartition("<h2>Merged data")[2]
    table = body[body.index("<table>") : body.index("</table>")]
    assert "nan" not in table
    assert "<td>–</td>" in table


def test_shells_of_noise_have_no_r_split() -> None:
    base = dict.fromkeys(("d_max", "d_min", "completeness", "multiplicity", "i_over_sigma", "cc_half", "cc_star"), 1.0)
    rows = [base | {"n_observations": 9, "n_unique": 3, "r_split": value} for value in (0.25, -3.0, 40.0)]
    figure = shells(rows)
    assert list(figure.data[1].y) == [25.0, None, None]
    body = build_report(ReportData("x", summary(), None, "", "", shells=rows)).rpartition("<h2>Merged data")[2]
    assert [f"<td>{text}</td></tr>" in body for text in ("25.00", "–", "> 200", "-300.00")] == [True, True, True, False]


def test_what_merging_says_of_errors_and_resolution_is_shown() -> None:
    names = ("completeness", "multiplicity", "i_over_sigma", "cc_half", "cc_star", "r_split", "cc_control", "chi2")
    shell = dict.fromkeys(names, 0.5) | {"d_max": 30.0, "d_min": 2.0, "cc_reference": float("nan")}
    shell |= {"n_observations": 9, "n_unique": 3, "n_pairs": 1234, "n_possible": 2468}
    quality = {
        "error_model": {"fitted": True, "counting": 1.02, "relative": 0.05, "partiality": 0.03, "position": 0.1, "width": 0.2}
        | {"nu": 20.0, "degrees": 5000},
        "resolution": {"cc_half": 1.93, "i_over_sigma": float("nan"), "cc_half_limit": 0.3, "i_over_sigma_limit": 1.0},
        "normal_probability": {"expected": [-1.0, 0.0, 1.0], "found": [-1.1, 0.0, 1.1]},
    }
    data = ReportData("x", summary(), None, "", "", shells=[shell], overall=shell, quality=quality)
    body = build_report(data).rpartition("<h2>Merged data")[2]
    for text in (
        "of the 1,234 reflections (50.0 % of those possible)",
        "1.93 Å by CC1/2 ≥ 0.3",
        "– by ⟨I/σ⟩ ≥ 1",
        "5,000 differences",
    ):
        assert text in body, text
    assert "control CC" in body
    assert "CC_ref" not in body
    assert body.count("plotly-graph-div") >= 2


def test_titles_of_plots_are_below_the_buttons() -> None:
    figure = spots_and_rmsd(summary())
    buttons, titles = 30, 30  # px
    assert figure.layout.margin.t >= buttons + titles


def test_equal_values_are_one_bar() -> None:
    bars = histogram(np.full(100, 90.0), 60, "blue")
    assert list(bars.y) == [100]
    assert bars.x[0] == pytest.approx(90)
    assert bars.width[0] < 0.5
    assert len(histogram(np.array([1.0, 2.0]), 60, "blue").y) == 60
    assert sum(histogram(np.empty(0), 60, "blue").y) == 0


def test_pictures_are_of_few_shades() -> None:
    picture = np.random.default_rng(1).poisson(5, (200, 200)).astype(float)
    picture[:10] = np.nan
    image = Image.open(io.BytesIO(base64.b64decode(png(picture).partition(",")[2])))
    assert image.mode == "P"
    assert image.convert("RGB").getpixel((5, 5)) == (226, 232, 240)
    row, column = np.unravel_index(np.nanargmax(picture), picture.shape)
    assert image.convert("RGB").getpixel((int(column), int(row))) == (0, 0, 0)
