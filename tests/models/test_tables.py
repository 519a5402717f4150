from __future__ import annotations

import numpy as np
import pytest

from xfelproc.models.tables import FrameTable, SpotTable


def test_missing_columns_are_filled() -> None:
    spots = SpotTable(fast=[1.0, 2.0])
    assert len(spots) == 2
    assert spots["bbox"].shape == (2, 4)


def test_unknown_column_is_refused() -> None:
    with pytest.raises(ValueError, match="has no column brightness"):
        SpotTable(brightness=[1.0])


def test_wrong_entry_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="entries have shape"):
        SpotTable(bbox=[[1, 2]])


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="different lengths"):
        SpotTable(fast=[1.0], slow=[1.0, 2.0])


def test_concatenate_and_select() -> None:
    both = FrameTable.concatenate([FrameTable(reason=["a"], n_spots=[3]), FrameTable(reason=["b"], n_spots=[4])])
    assert both.select(both["n_spots"] > 3)["reason"].tolist() == ["b"]
    assert len(FrameTable.concatenate([])) == 0
    assert both.replace(n_spots=np.array([1, 1]))["n_spots"].sum() == 2
