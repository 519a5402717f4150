"""Spots of frames that go on from frame to frame become one."""

from __future__ import annotations

import numpy as np

from xfelproc.algorithms.spotfinding.joining import JoinSpots
from xfelproc.models.tables import SpotTable


def pieces(*rows: tuple[int, float, float, float]) -> SpotTable:
    """Rows of frame, fast, slow, intensity, on boxes of five pixels."""
    frame, fast, slow, intensity = (np.array(column) for column in zip(*rows, strict=True))
    box = np.column_stack([fast - 2, fast + 3, slow - 2, slow + 3]).astype(int)
    names = {"frame": frame, "fast": fast, "slow": slow, "intensity": intensity, "snr": np.sqrt(intensity), "bbox": box}
    return SpotTable(
        len(rows), **names, var_fast=np.full(len(rows), 0.01), var_slow=np.full(len(rows), 0.01), n_pixels=np.full(len(rows), 9)
    )


def test_what_goes_on_is_one_spot() -> None:
    found = JoinSpots().join(pieces((3, 50.2, 60.1, 100), (4, 50.4, 60.0, 300), (5, 50.3, 60.2, 100), (4, 90.0, 60.0, 80)), 10)
    assert len(found) == 2
    row = int(np.argmax(found["n_frames"]))
    assert found["n_frames"][row] == 3
    assert found["z"][row] == 4.5
    assert found["intensity"][row] == 500
    np.testing.assert_allclose(found["fast"][row], (50.2 * 100 + 50.4 * 300 + 50.3 * 100) / 500)
    assert found["var_z"][row] < found["var_z"][1 - row] <= 1 / 12


def test_two_that_follow_one_another_are_two() -> None:
    rows = [(frame, 50.0, 60.0, value) for frame, value in enumerate((50, 400, 60, 50, 500, 70))]
    found = JoinSpots().join(pieces(*rows), 6)
    assert sorted(found["n_frames"]) == [3, 3] or sorted(found["n_frames"]) == [2, 4]
    assert len(JoinSpots(depth=0.0).join(pieces(*rows), 6)) == 1


def test_a_gap_ends_a_spot_and_panels_stay_apart() -> None:
    table = pieces((0, 50.0, 60.0, 100), (2, 50.0, 60.0, 100), (3, 50.0, 60.0, 100))
    assert len(JoinSpots().join(table, 5)) == 2
    other = table.replace(panel=np.array([0, 0, 1]))
    assert len(JoinSpots().join(other, 5)) == 3


def test_what_never_ends_is_no_spot() -> None:
    rows = [(frame, 50.0, 60.0, 100.0) for frame in range(30)]
    assert len(JoinSpots(max_frames=20).join(pieces(*rows), 30)) == 0
    assert len(JoinSpots().join(pieces(*rows), 30)) == 1


def test_weak_pieces_make_a_spot_together() -> None:
    found = JoinSpots(min_snr=5.0).join(pieces(*[(frame, 50.0, 60.0, 9.0) for frame in range(3)]), 5)
    assert len(found) == 1
    assert len(JoinSpots(min_snr=5.5).join(pieces(*[(frame, 50.0, 60.0, 9.0) for frame in range(3)]), 5)) == 0
