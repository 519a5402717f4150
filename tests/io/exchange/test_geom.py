from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfelproc.errors import DataError
from xfelproc.geometry.detector import pixel_to_lab
from xfelproc.io.exchange.geom import parse_direction, parse_geom, read_geom
from xfelproc.io.exchange.geom_model import MaskSpec, Quantity
from xfelproc.io.exchange.geom_write import format_geom, geom_of, unique_names
from xfelproc.models.conventions import HC, wavelength_of
from xfelproc.models.experiment import Beam, Detector, DetectorGroup, Experiment, Panel

PANEL = "{0}/min_fs = 0\n{0}/max_fs = 9\n{0}/min_ss = 0\n{0}/max_ss = 4\n{0}/corner_x = 1.5\n{0}/corner_y = -2\n"
TOP = "res = 10000\nclen = 0.1\n"


def panel(name: str = "p0", more: str = "") -> str:
    return PANEL.format(name) + more


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x", (1, 0, 0)),
        ("-y", (0, -1, 0)),
        ("+0.1x -0.99y", (0.1, -0.99, 0)),
        ("- 0.5 x + 2y -.25z", (-0.5, 2, -0.25)),
        ("1.0e-3x + y", (1e-3, 1, 0)),
        ("-0.0057225772x +0.9999836087y", (-0.0057225772, 0.9999836087, 0)),
    ],
)
def test_directions(text: str, expected: tuple[float, float, float]) -> None:
    assert parse_direction(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "q", "1.0", "x y q", "0x", "1..2x"])
def test_no_directions(text: str) -> None:
    assert parse_direction(text) is None


@pytest.mark.parametrize(
    ("text", "distance"),
    [("0.1", 100), ("95.3 mm", 95.3), ("0.0953 m", 95.3), ("/LCLS/clen", 0.5), ("/LCLS/clen m", 500)],
)
def test_camera_lengths(text: str, distance: float) -> None:
    geom = parse_geom(f"res = 10000\nclen = {text}\n" + panel())
    assert geom.panels[0].distance({"/LCLS/clen": 0.5}) == pytest.approx(distance)


@pytest.mark.parametrize(
    ("line", "wavelength"),
    [
        ("photon_energy = 9000", wavelength_of(9000)),
        ("photon_energy = 9 keV", wavelength_of(9000)),
        ("photon_energy = /a/b eV", wavelength_of(8000)),
        ("photon_energy = /a/b keV", wavelength_of(8e6)),
        ("wavelength = 1.3 A", 1.3),
        ("wavelength = 1.3e-10 m", 1.3),
        ("electron_voltage = 200 kV", 0.02507934),
    ],
)
def test_wavelengths(line: str, wavelength: float) -> None:
    assert parse_geom(TOP + line + "\n" + panel()).wavelength({"/a/b": 8000.0}) == pytest.approx(wavelength, rel=1e-6)


def test_defaults_count_for_the_panels_below_them() -> None:
    geom = parse_geom(TOP + panel("a") + "res = 20000\nadu_per_eV = 0.5\n" + panel("b") + "a/adu_per_photon = 3\n")
    assert [p.res for p in geom.panels] == [10000, 20000]
    assert [p.gain(HC / 100) for p in geom.panels] == [3, 50]


def test_a_later_dim_replaces_an_earlier_one() -> None:
    geom = parse_geom(TOP + "dim0 = %\ndim0 = ss\ndim1 = fs\n" + panel())
    assert geom.panels[0].dims == ("ss", "fs")


def test_position_of_a_pixel_in_our_frame() -> None:
    geom = parse_geom(TOP + "coffset = 0.01\n" + panel(more="p0/fs = +0.6x +0.8y\np0/ss = -0.8x +0.6y\n"))
    # (corner + 2 fs + 3 ss) / res, with CrystFEL's x and z turned round
    x, y = 1.5 + 2 * 0.6 - 3 * 0.8, -2 + 2 * 0.8 + 3 * 0.6
    assert pixel_to_lab(geom.detector(), 0, 2.0, 3.0)[0] == pytest.approx((-x * 0.1, y * 0.1, -110))


def test_detector_shift_moves_all_panels() -> None:
    still = parse_geom(TOP + panel()).detector().panels[0]
    moved = parse_geom(TOP + "detector_shift_x = 2 mm\ndetector_shift_y = /s/y m\n" + panel()).detector({"/s/y": 0.001}).panels[0]
    assert np.subtract(moved.origin, still.origin) == pytest.approx((-2, 1, 0))


def test_masks_of_both_styles() -> None:
    text = "mask = /m\nmask_good = 1\nmask_bad = 0x6\nmask3_data = /n\nmask3_file = f.h5\nmask3_badbits = 8\n"
    masks = parse_geom(TOP + text + panel()).panels[0].masks
    assert masks == (MaskSpec("/m", "", 1, 6), MaskSpec("/n", "f.h5", 0, 8))
    assert masks[0].is_bad(np.array([0, 1, 3, 5, 9], dtype=np.uint16)).tolist() == [True, False, True, True, False]


def test_mask_bits_beyond_the_type() -> None:
    assert MaskSpec("/m", "", 0, 0xFFFF).is_bad(np.array([0, 1, 255], dtype=np.uint8)).tolist() == [False, True, True]
    assert MaskSpec("/m", "", 0, 0xFFFF).is_bad(np.array([0, 1], dtype=np.int16)).tolist() == [False, True]


def test_rigid_groups_make_a_tree() -> None:
    text = TOP + "".join(panel(n) for n in ("a", "b", "c", "d"))
    text += "rigid_group_q0 = a,b\nrigid_group_q1 = c,d\nrigid_group_s0 = a\nrigid_group_s1 = b\n"
    text += "rigid_group_collection_quads = q0,q1\nrigid_group_collection_sensors = s0,s1,q1\n"
    tree = parse_geom(text).detector().hierarchy
    assert tree is not None
    assert [g.name for g in tree.children if isinstance(g, DetectorGroup)] == ["q0", "q1"]
    assert tree.panels() == (0, 1, 2, 3)
    first = tree.children[0]
    assert isinstance(first, DetectorGroup)
    assert [g.name for g in first.children if isinstance(g, DetectorGroup)] == ["s0", "s1"]


def test_named_groups_make_a_tree() -> None:
    text = TOP + panel("a") + panel("b") + "group_q0 = a\ngroup_q1 = b\ngroup_all = q0,q1\n"
    tree = parse_geom(text).detector().hierarchy
    assert tree is not None
    assert [(g.name, g.panels()) for g in tree.children if isinstance(g, DetectorGroup)] == [("q0", (0,)), ("q1", (1,))]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hello\n", "line 1"),
        (TOP, "no panel"),
        (TOP + "nonsense = 3\n" + panel(), "'nonsense'"),
        (TOP + panel(more="p0/corner_z = 1\n"), "'corner_z'"),
        (TOP + panel(more="p0/fs = 3q\n"), "not a direction"),
        (TOP + panel(more="p0/max_fs = nine\n"), "not a number"),
        (TOP + panel(more="p0/max_fs = -3\n"), "must be positive"),
        (TOP + "p0/min_fs = 0\n", "has no max_fs"),
        ("clen = 0.1\n" + panel(), "has no res"),
        ("res = 1\nclen = 5 parsec\n" + panel(), "the unit"),
        ("res = 1\nclen = far\n" + panel(), "neither a number nor"),
        (TOP + "dim0 = %\ndim1 = ss\n" + panel(), "dims"),
        (TOP + "dim0 = ss\ndim2 = fs\n" + panel(), "not all given"),
        (TOP + panel() + "rigid_group_a = p7\n", "'p7'"),
        (TOP + panel() + "bad_x/min_x = 3\n", "bad_x"),
    ],
)
def test_what_is_wrong_is_said(text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        parse_geom(text, "x.geom")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"input\.geometry"):
        read_geom(tmp_path / "no.geom")


def test_unknown_energy_is_nan_and_legacy_keys_are_noted() -> None:
    geom = parse_geom(TOP + panel(more="p0/badrow_direction = -\n"))
    assert np.isnan(geom.beam().wavelength)
    assert "badrow_direction" in geom.notes[0]


def test_names_that_a_geometry_can_hold() -> None:
    assert unique_names(["a", "a", "bad one", "", "x/y"]) == ["a", "a_1", "p_bad_one", "p", "x_y"]


angle = st.floats(-0.4, 0.4)


@given(
    st.lists(st.tuples(angle, angle, angle, st.floats(-90, 90), st.floats(50, 900), st.floats(0.05, 0.2)), min_size=1, max_size=4)
)
def test_any_detector_is_kept(rows: list[tuple[float, float, float, float, float, float]]) -> None:
    from xfelproc.geometry.cells import rotation_matrix

    panels = []
    for number, (a, b, c, x, z, size) in enumerate(rows):
        r = rotation_matrix((a, b, c))
        panels.append(
            Panel(f"p{number}", tuple(r[:, 0]), tuple(r[:, 1]), (x, -x / 3, -z), (size, 1.1 * size), (20, 30), mask=((1, 2, 5, 7),))
        )
    detector = Detector(tuple(panels))
    again = parse_geom(format_geom(geom_of(Experiment(Beam(1.1), detector))))
    assert again.wavelength() == pytest.approx(1.1, rel=1e-12)
    for number in range(len(panels)):
        corners = ([0, 20, 0, 20], [0, 0, 30, 30])
        assert np.abs(pixel_to_lab(detector, number, *corners) - pixel_to_lab(again.detector(), number, *corners)).max() < 1e-9
        mask = again.region_mask(again.detector())
        assert mask[number, :30, :20].astype(bool).sum() == 20
        assert mask[number, 2:7, 1:5].all()


def test_quantities_of_unknown_paths() -> None:
    assert Quantity(path="/a", factor=2.0).resolve({}) is None
