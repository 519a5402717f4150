"""mmCIF of merged data for deposition: reflections, and what the archive asks of data collection and reduction.

Items are those of the PDBx/mmCIF dictionary (v5): ``refln``, ``reflns``, ``reflns_shell``, ``diffrn``, ``software``, and for serial
data ``pdbx_serial_crystallography_data_reduction``. ``refln.status`` is o for working, f for test reflections and x for those that
were not measured; ``pdbx_r_free_flag`` is the number itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import DataError
from xfelproc.io.exchange.merged_file import MergedData

ROWS_AT_ONCE = 1 << 15
LARGEST_R = 10.0
ENTRY = "xxxx"
"""The entry's name, which the archive gives."""

MERGED_ITEMS = (
    ("intensity_meas", "intensity"),
    ("intensity_sigma", "sigma"),
    ("pdbx_I_plus", "intensity_plus"),
    ("pdbx_I_plus_sigma", "sigma_plus"),
    ("pdbx_I_minus", "intensity_minus"),
    ("pdbx_I_minus_sigma", "sigma_minus"),
)
AMPLITUDE_ITEMS = (
    ("F_meas_au", "amplitude"),
    ("F_meas_sigma_au", "sigma"),
    ("pdbx_F_plus", "amplitude_plus"),
    ("pdbx_F_plus_sigma", "sigma_plus"),
    ("pdbx_F_minus", "amplitude_minus"),
    ("pdbx_F_minus_sigma", "sigma_minus"),
    ("pdbx_anom_difference", "anomalous"),
    ("pdbx_anom_difference_sigma", "sigma_anomalous"),
)

OVERALL_ITEMS = (
    ("d_resolution_low", "d_max", 1.0, 3),
    ("d_resolution_high", "d_min", 1.0, 3),
    ("number_obs", "n_unique", 1.0, 0),
    ("number_all", "n_possible", 1.0, 0),
    ("percent_possible_obs", "completeness", 100.0, 2),
    ("pdbx_number_measured_all", "n_observations", 1.0, 0),
    ("pdbx_redundancy", "multiplicity", 1.0, 2),
    ("pdbx_netI_over_sigmaI", "i_over_sigma", 1.0, 2),
    ("pdbx_Rmerge_I_obs", "r_merge", 1.0, 4),
    ("pdbx_Rrim_I_all", "r_meas", 1.0, 4),
    ("pdbx_Rpim_I_all", "r_pim", 1.0, 4),
    ("pdbx_CC_half", "cc_half", 1.0, 4),
    ("pdbx_CC_star", "cc_star", 1.0, 4),
    ("pdbx_R_split", "r_split", 1.0, 4),
)
SHELL_ITEMS = (
    ("d_res_low", "d_max", 1.0, 3),
    ("d_res_high", "d_min", 1.0, 3),
    ("number_unique_obs", "n_unique", 1.0, 0),
    ("number_possible", "n_possible", 1.0, 0),
    ("number_measured_all", "n_observations", 1.0, 0),
    ("percent_possible_obs", "completeness", 100.0, 2),
    ("pdbx_redundancy", "multiplicity", 1.0, 2),
    ("meanI_over_sigI_obs", "i_over_sigma", 1.0, 2),
    ("Rmerge_I_obs", "r_merge", 1.0, 4),
    ("pdbx_Rrim_I_all", "r_meas", 1.0, 4),
    ("pdbx_Rpim_I_all", "r_pim", 1.0, 4),
    ("pdbx_CC_half", "cc_half", 1.0, 4),
    ("pdbx_CC_star", "cc_star", 1.0, 4),
    ("pdbx_R_split", "r_split", 1.0, 4),
)


@dataclass(frozen=True)
class Deposition:
    """What is said beside the reflections.

    ``overall`` and ``shells`` have the columns of ShellTable; ``counts`` the items of
    ``pdbx_serial_crystallography_data_reduction`` (empty: no serial experiment); ``b_wilson`` is in Å².
    """

    overall: Mapping[str, Any]
    shells: Sequence[Mapping[str, Any]]
    version: str
    counts: Mapping[str, int] = field(default_factory=dict)
    b_wilson: float | None = None


def mmcif_pieces(data: MergedData, said: Deposition) -> Iterator[str]:
    """Yield the text of an mmCIF file of merged data.

    Raises
    ------
    DataError
        If no reflection was measured.
    """
    if not np.any(np.isfinite(data.merged["intensity"])):
        raise DataError("no reflection was measured, so there is no mmCIF file to write")
    document = gemmi.cif.Document()
    _describe(document.add_new_block(f"r{ENTRY}sf"), data, said)
    yield document.as_string()
    yield from _reflections(data)


def _describe(block: gemmi.cif.Block, data: MergedData, said: Deposition) -> None:
    group = gemmi.find_spacegroup_by_name(data.space_group)
    block.set_pair("_entry.id", ENTRY)
    lengths = {f"length_{name}": f"{value:.4f}" for name, value in zip("abc", data.cell[:3], strict=True)}
    names = ("alpha", "beta", "gamma")
    angles = {f"angle_{name}": f"{value:.4f}" for name, value in zip(names, data.cell[3:], strict=True)}
    block.set_pairs("_cell.", {"entry_id": ENTRY, **lengths, **angles})
    symmetry = {"entry_id": ENTRY, "space_group_name_H-M": group.hm, "Int_Tables_number": str(group.number)}
    block.set_pairs("_symmetry.", symmetry)
    block.set_pair("_exptl_crystal.id", "1")
    block.set_pair("_reflns_scale.group_code", "1")
    diffrn = {"id": "1", "crystal_id": "1", "pdbx_serial_crystal_experiment": "Y" if said.counts else "N"}
    block.set_pairs("_diffrn.", diffrn)
    block.set_pairs("_diffrn_radiation.", {"diffrn_id": "1", "wavelength_id": "1", "pdbx_scattering_type": "x-ray"})
    block.set_pairs("_diffrn_radiation_wavelength.", {"id": "1", "wavelength": f"{data.wavelength:.5f}", "wt": "1.0"})
    if said.counts:
        counts = {name: str(value) for name, value in said.counts.items()}
        block.set_pairs("_pdbx_serial_crystallography_data_reduction.", {"diffrn_id": "1", **counts})
    _software(block, said.version)
    _statistics(block, said)


def _software(block: gemmi.cif.Block, version: str) -> None:
    loop = block.init_loop("_software.", ["pdbx_ordinal", "name", "classification", "version"])
    for number, what in enumerate(("data reduction", "data scaling"), 1):
        loop.add_row([str(number), "xfelproc", gemmi.cif.quote(what), gemmi.cif.quote(version)])


def _statistics(block: gemmi.cif.Block, said: Deposition) -> None:
    overall = {"entry_id": ENTRY, "pdbx_diffrn_id": "1", "pdbx_ordinal": "1"}
    overall |= {item: _number(key, said.overall.get(key), digits, scale) for item, key, scale, digits in OVERALL_ITEMS}
    if said.b_wilson is not None:
        overall["B_iso_Wilson_estimate"] = f"{said.b_wilson:.2f}"
    for item, value in overall.items():  # set_pairs would quote the question mark of an unknown value
        block.set_pair(f"_reflns.{item}", value)
    shells = [shell for shell in said.shells if shell["n_unique"]]
    if not shells:
        return
    loop = block.init_loop("_reflns_shell.", ["pdbx_ordinal", "pdbx_diffrn_id", *(item for item, _, _, _ in SHELL_ITEMS)])
    for number, shell in enumerate(shells, 1):
        loop.add_row([str(number), "1", *(_number(key, shell.get(key), digits, scale) for _, key, scale, digits in SHELL_ITEMS)])


def _number(key: str, value: float | None, digits: int, scale: float) -> str:
    """Return a number; an R value of a shell without signal can be anything, and then is none."""
    known = value is not None and np.isfinite(value) and not (key.startswith("r_") and not 0 <= value <= LARGEST_R)
    return f"{scale * value:.{digits}f}" if known and value is not None else "?"


def _reflections(data: MergedData) -> Iterator[str]:
    columns = [data.merged[name] for _, name in MERGED_ITEMS] + [data.amplitudes[name] for _, name in AMPLITUDE_ITEMS]
    # a column of nothing, as anomalous differences of a centric group are, says no more than its absence
    kept = [i for i, column in enumerate(columns) if np.any(np.isfinite(column))]
    items = [item for item, _ in (*MERGED_ITEMS, *AMPLITUDE_ITEMS)]
    names = ["crystal_id", "wavelength_id", "scale_group_code", "index_h", "index_k", "index_l", "status", "pdbx_r_free_flag"]
    yield "\nloop_\n" + "".join(f"_refln.{name}\n" for name in [*names, *(items[i] for i in kept)])
    measured = np.isfinite(data.merged["intensity"])
    status = np.where(~measured, "x", np.where(data.merged["free"] == 0, "f", "o"))
    hkl, free = data.merged["hkl"], data.merged["free"]
    for first in range(0, len(hkl), ROWS_AT_ONCE):
        some = slice(first, first + ROWS_AT_ONCE)
        values = zip(*(_texts(columns[i][some]) for i in kept), strict=True)
        rows = zip(*hkl[some].T.tolist(), status[some].tolist(), free[some].tolist(), values, strict=True)
        yield "".join(f"1 1 1 {h} {k} {ell} {s} {f} {' '.join(row)}\n" for h, k, ell, s, f, row in rows)


def _texts(values: NDArray[np.float64]) -> list[str]:
    return [f"{value:.6g}" if math.isfinite(value) else "?" for value in values.tolist()]
