from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.io.sources.cbf_files import mini_cbf, two_panels, write
from xfelproc.errors import DataError
from xfelproc.geometry.cells import rotation_matrix
from xfelproc.geometry.detector import mm_to_lab
from xfelproc.io.sources import open_source
from xfelproc.io.sources.imgcif_axes import Axis, AxisTree, Step, hierarchy, place_panel

A = np.arange(15, dtype=np.int32).reshape(3, 5)
B = 1000 - A


def test_panels_stand_where_the_axes_put_them(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "two_0007.cbf", two_panels([(A, B)], [12.5])))
    experiment = source.experiment(0)
    detector = experiment.detector
    assert [p.name for p in detector.panels] == ["A", "B"]
    assert [p.pixel_size for p in detector.panels] == [(0.2, 0.1)] * 2
    turn = rotation_matrix(np.radians([30.0, 0, 0]))
    # by hand: pixel corner (2, 1) of A; B is stored backwards along fast
    local = np.array([[-2 - 0.5 + 0.4, 0.25 - 0.1, -100.0], [2 - 0.5 + (5 - 2) * 0.2, 0.25 - 0.1, -100.0]])
    expected = local @ turn.T
    for panel, position in enumerate(expected):
        assert mm_to_lab(detector, panel, [[2 * 0.2, 0.1]])[0] == pytest.approx(position, abs=1e-9)
    assert [p.trusted_range for p in detector.panels] == [(0.0, 5000.0), (0.0, 6000.0)]
    assert detector.panels[0].gain == 2.0
    tree = detector.hierarchy
    assert tree is not None
    assert (tree.name, tree.children) == ("ARM", (0, 1))
    assert tree.origin == pytest.approx(tuple(turn @ [0, 0, -100.0]))
    frame = source.read(0)
    assert np.array_equal(frame.pixels[0], A)
    assert np.array_equal(frame.pixels[1], B)


def test_beam_goniometer_and_scan(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "two_0007.cbf", two_panels([(A, B)], [12.5])))
    experiment = source.experiment(0)
    assert experiment.beam.wavelength == 1.25
    assert experiment.beam.polarization_fraction == pytest.approx(0.99)
    assert experiment.beam.polarization_normal == pytest.approx((0, 1, 0))
    goniometer = experiment.goniometer
    assert goniometer is not None
    assert goniometer.names == ("KAPPA", "OMEGA")
    assert goniometer.axes[1] == (-1.0, 0.0, 0.0)
    assert (goniometer.angles, goniometer.scan_axis) == ((0.0, 12.5), 1)
    scan = experiment.scan
    assert scan is not None
    assert (scan.oscillation, scan.image_range) == ((12.5, 0.5), (7, 7))


def test_several_frames_in_one_file(tmp_path: Path) -> None:
    frames = [(A + 7 * k, B + k) for k in range(3)]
    source = open_source(write(tmp_path / "many.cbf", two_panels(frames, [1.0, 1.5, 2.0])))
    assert source.n_frames == 3
    for k in (2, 0, 1):
        pixels = source.read(k).pixels
        assert np.array_equal(pixels[0], A + 7 * k)
        assert np.array_equal(pixels[1], B + k)
        scan = source.experiment(k).scan
        assert scan is not None
        assert (scan.oscillation[0], scan.image_range) == (1.0 + 0.5 * k, (k + 1, k + 1))
    assert source.experiment(0).detector is source.experiment(2).detector


def test_comment_lines_fill_what_the_tables_leave_out(tmp_path: Path) -> None:
    tables = two_panels([(A, B)], [0.0]).split(b"data_two\n")[1]
    comments = b"_array_data.header_contents\n;\n# Silicon sensor, thickness 0.000320 m\n;\n"
    text = b"###CBF\ndata_two\n" + tables.replace(b"loop_\n_array_data.array_id", comments + b"loop_\n_array_data.array_id")
    panel = open_source(write(tmp_path / "two.cbf", text)).experiment(0).detector.panels[0]
    assert (panel.material, panel.thickness) == ("Si", pytest.approx(0.32))
    assert panel.mu > 0


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (b"AF translation detector AS", b"AX translation detector AS", "not defined"),
        (b"ARM translation detector TILT", b"ARM translation detector AF", "depends on itself"),
        (b"AF AF 0 0.2\n", b"", "'AF' is used but not defined"),
        (b"AF AF 0 0.2", b"AF AF 0 0.0", "size"),
        (b"A 1 5 1 increasing AF\n", b"", "dimensions of array 'A'"),
        (b"KAPPA rotation goniometer OMEGA 0 0.6 0.8", b"KAPPA rotation goniometer OMEGA 0 0 0", "no direction"),
        (b"1.25(3)", b"?", "wavelength not stated"),
        (b"loop_\n_axis.id", b"loop_\nloop_", "not CIF"),
    ],
)
def test_wrong_tables_are_named(tmp_path: Path, old: bytes, new: bytes, match: str) -> None:
    content = two_panels([(A, B)], [0.0])
    assert old in content
    path = write(tmp_path / "bad.cbf", content.replace(old, new))
    with pytest.raises(DataError, match=match) as error:
        open_source(path).read(0)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("keep", [0.2, 0.93, 0.985])
def test_cut_files_are_errors(tmp_path: Path, keep: float) -> None:
    content = two_panels([(A, B)], [0.0])
    path = write(tmp_path / "cut.cbf", content[: int(keep * len(content))])
    with pytest.raises(DataError, match=str(path)):
        open_source(path).read(0)


def test_full_header_without_tables_falls_back_on_comments(tmp_path: Path) -> None:
    content = mini_cbf(A).replace(b"_array_data.data\r\n", b"_axis.id NONE\r\n_array_data.data\r\n")
    source = open_source(write(tmp_path / "a.cbf", content))
    assert source.summary().format.startswith("miniCBF")
    assert np.array_equal(source.read(0).pixels[0], A)


def _axis(
    name: str, kind: str, parent: str, vector: tuple[float, float, float], **values: float | tuple[float, float, float]
) -> Axis:
    offset = values.get("offset", (0.0, 0.0, 0.0))
    return Axis(name, kind, "detector", parent, vector, offset, float(values.get("angle", 0)), float(values.get("shift", 0)))  # type: ignore[arg-type]


def test_rotations_turn_what_hangs_on_them_about_their_own_place() -> None:
    tree = AxisTree(
        [
            _axis("z", "translation", "", (0, 0, 1), shift=-50.0),
            _axis("r", "rotation", "z", (0, 0, 1), angle=90.0, offset=(10.0, 0.0, 0.0)),
            _axis("s", "translation", "r", (0, -1, 0)),
            _axis("f", "translation", "s", (1, 0, 0)),
        ]
    )
    assert tree.chain("f") == ("f", "s", "r", "z")
    frame = place_panel(tree, (Step("f", 1.0, 0.5),), (Step("s", 0.0, 0.25),))
    assert frame.origin == pytest.approx((10.0, 1.0, -50.0))
    assert frame.fast_axis == pytest.approx((0, 1, 0))
    assert frame.slow_axis == pytest.approx((1, 0, 0))
    assert (frame.pixel_size, frame.mount) == ((0.5, 0.25), "r")
    assert hierarchy(tree, ("r",)) is None


def test_hierarchy_leaves_out_axes_that_carry_one_thing() -> None:
    axes = [_axis("base", "translation", "", (0, 0, 1)), _axis("arm", "rotation", "base", (0, 0, 1))]
    mounts = []
    for q in range(2):
        axes.append(_axis(f"q{q}", "rotation", "arm", (0, 0, 1)))
        for s in range(3):
            axes += [_axis(f"q{q}s{s}", "rotation", f"q{q}", (0, 0, 1)), _axis(f"q{q}s{s}a", "rotation", f"q{q}s{s}", (0, 0, 1))]
            mounts.append(f"q{q}s{s}a")
    tree = hierarchy(AxisTree(axes), tuple(mounts))
    assert tree is not None
    assert tree.name == "arm"
    assert [getattr(child, "name", None) for child in tree.children] == ["q0", "q1"]
    assert tree.children[1].children == (3, 4, 5)  # type: ignore[union-attr]
    assert tree.panels() == (0, 1, 2, 3, 4, 5)
