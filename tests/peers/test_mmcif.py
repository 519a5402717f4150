"""Our mmCIF against the archive's dictionary: $XFELPROC_MMCIF_DICTIONARY, or that of Debian's libcifpp-data."""

from __future__ import annotations

import os
from pathlib import Path

import gemmi
import numpy as np
import pytest

from tests.io.exchange.test_mmcif_write import text
from xfelproc.io.exchange.mmcif_unmerged import unmerged_block
from xfelproc.io.exchange.mmcif_write import ENTRY
from xfelproc.io.exchange.mtz import BatchModel, MtzHeader
from xfelproc.io.exchange.mtz_pieces import unmerged_pieces

pytestmark = pytest.mark.peer

INSTALLED = "/usr/share/libcifpp/mmcif_pdbx.dic"


@pytest.fixture(scope="module")
def dictionary() -> Path:
    path = Path(os.environ.get("XFELPROC_MMCIF_DICTIONARY", INSTALLED))
    if not path.is_file():
        pytest.skip(f"no dictionary at {path}: set XFELPROC_MMCIF_DICTIONARY to an mmcif_pdbx_v50.dic")
    return path


def test_every_item_is_the_dictionarys(dictionary: Path, tmp_path: Path) -> None:
    header = MtzHeader((79.1, 79.1, 38.0, 90.0, 90.0, 90.0), "P 43 21 2", 1.3)
    rows = np.zeros((3, 15), dtype=np.float32)
    rows[:, :7] = [[1, 0, 1, 1, 1, 50.0, 3.0], [1, 0, 1, 3, 1, 55.0, 4.0], [2, 1, 0, 2, 1, 9.0, 1.0]]
    path = tmp_path / "unmerged.mtz"
    path.write_bytes(b"".join(unmerged_pieces(3, [rows], [BatchModel(np.eye(3) / 50.0, 1.3)], header)))
    document = gemmi.cif.read_string(text() + "".join(unmerged_block(path, ENTRY)))
    assert len(document) == 2
    said: list[str] = []
    ddl = gemmi.cif.Ddl(said.append)
    ddl.read_ddl(gemmi.cif.read(str(dictionary)))
    valid = ddl.validate_cif(document)
    ours = [line for line in said if "Bad DDL2" not in line]  # the dictionary itself is not without faults
    assert valid, ours
    assert ours == []
