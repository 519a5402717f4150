"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def _data_folder() -> Path:
    return Path(os.environ.get("XFELPROC_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real test data; the test is skipped where it is missing."""
    folder = _data_folder()
    if not folder.is_dir():
        pytest.skip(f"test data not found at {folder}: set XFELPROC_TEST_DATA")
    return folder
