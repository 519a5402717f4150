"""The real command over raw frames by MPI ranks gives the bytes that one process gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.conftest import xfelproc, xfelproc_mpi
from tests.run.small_frames import write_frames


@pytest.mark.slow
def test_mpi_gives_the_same_bytes(tmp_path: Path) -> None:
    write_frames(tmp_path)
    job = tmp_path / "job.toml"
    job.write_text('[input]\nfiles = "frames.h5"\ngeometry = "frames.geom"\n\n[execution]\nfold_size = 8\nunit_size = 4\n')
    for command, out in ((xfelproc, "one.h5"), (lambda *given: xfelproc_mpi(2, *given), "mpi.h5")):
        driver = ("--driver", "inline") if out == "one.h5" else ()
        result = command("average", job, "-o", tmp_path / out, *driver)
        assert result.code == 0, result.output
        assert "40 frames averaged" in result.output
    assert (tmp_path / "mpi.h5").read_bytes() == (tmp_path / "one.h5").read_bytes()
