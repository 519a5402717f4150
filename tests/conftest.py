"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# a deadline is a timed assertion: on a loaded machine, or while a kernel compiles, it fails without a fault
settings.register_profile("xfelproc", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("xfelproc")

LONGEST_FIRST = (
    "integration/test_slurm.py",
    "integration/test_campaign.py",
    "run/test_parameters.py",
    "integration/test_faults_mpi.py",
    "integration/test_faults_dask.py",
    "integration/test_faults_pool.py",
    "run/test_merging.py",
    "integration/test_resume.py",
    "integration/test_drivers.py",
    "integration/test_bad_input.py",
    "integration/test_distance.py",
    "integration/test_docs.py",
)
"""Files of tests that take minutes, of which those that wait most come first: the others run beside them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, in this order; ``--dist loadfile --no-loadscope-reorder`` hands them out so."""
    rank = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def _data_folder() -> Path:
    return Path(os.environ.get("XFELPROC_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real test data; the test is skipped where it is missing."""
    folder = _data_folder()
    if not folder.is_dir():
        pytest.skip(f"test data not found at {folder}: set XFELPROC_TEST_DATA")
    return folder
