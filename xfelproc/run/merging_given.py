"""An unmerged MTZ merged as it is: statistics, and on request the folder that `export` takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xfelproc.algorithms.merging.given import absence_words, absent, given_statistics, halves_of_batches
from xfelproc.algorithms.merging.observed import ALL, WITHIN, ObservedStatistics, ReflectionSums
from xfelproc.algorithms.merging.settings import Merge
from xfelproc.errors import ConfigError, DataError
from xfelproc.io.atomic import make_folder
from xfelproc.io.exchange.mtz import MtzHeader
from xfelproc.io.exchange.mtz_observations import ObservationFile
from xfelproc.models.tables import MergedTable, ShellTable
from xfelproc.run.directory import RunDirectory
from xfelproc.run.downstream import finish, write_table_one
from xfelproc.run.grouped import rows_of


@dataclass(frozen=True)
class GivenMerged:
    """An unmerged file, its merged reflections and their statistics."""

    file: ObservationFile
    merged: MergedTable
    observed: ObservedStatistics
    shells: ShellTable
    overall: ShellTable
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, path: Path, n_shells: int = 10, absences: bool = True) -> GivenMerged:
        """Merge a file, in shells of equal volume; ``absences``: also what its space group extinguishes.

        Raises
        ------
        DataError
            If it is no scaled unmerged MTZ, or has no usable observation.
        """
        file = ObservationFile.open(path)
        parts = []
        for rows in file.rows():
            half = halves_of_batches(rows.batch)
            parts.append(ReflectionSums.of(rows.hkl, rows.isym, rows.intensity, rows.sigma, file.group, half))
        sums = ReflectionSums.concatenate(parts)
        words = absence_words(sums, file.group, dropped=not absences)
        if not absences:
            sums = sums.select(~absent(sums, file.group))
        if not len(sums.hkl):
            raise DataError(f"none of its {file.n_rows} observations has an intensity and a positive SIGI", path)
        return cls(file, *given_statistics(sums, file.cell, file.group, n_shells), words)

    def record(self) -> dict[str, Any]:
        """Return what ``merge.json`` says of it."""
        return {
            "cell": list(self.file.cell),
            "space_group": self.file.group.xhm(),
            "proposal": False,
            "ambiguity": [],
            "settings": {},
            "warnings": list(self.warnings),
            "title": self.file.title or "xfelproc merged",
            "n_lattices": None,
            "n_lattices_used": None,
            "overall": rows_of(self.overall)[0],
            "shells": rows_of(self.shells),
            "quality": {},
        }

    def lines(self, anomalous: bool) -> list[str]:
        """Return the statistics as lines of a table; ``anomalous``: I(+) and I(-) each for itself."""
        kind = WITHIN if anomalous else ALL
        heads = (
            "d_max",
            "d_min",
            "obs",
            "unique",
            "used",
            "compl",
            "I/sig",
            "Rmerge",
            "Rmeas",
            "Rpim",
            "CC1/2",
            "CChalves",
            "CCano",
        )
        text = [" ".join(f"{head:>8}" for head in heads)]
        for table, found in ((self.shells, self.observed.shells(kind)), (self.overall, self.observed.overall(kind))):
            for row in range(len(table)):
                counts = (f"{int(found[name][row]):8d}" for name in ("n_observations", "n_unique", "n_repeated"))
                ratios = (f"{found[name][row]:8.3f}" for name in ("r_merge", "r_meas", "r_pim"))
                known = {name: float(table[name][row]) for name in ("completeness", "i_over_sigma", "cc_half", "cc_anomalous")}
                text.append(
                    f"{table['d_max'][row]:8.3f} {table['d_min'][row]:8.3f} {' '.join(counts)} {known['completeness']:8.4f} "
                    f"{known['i_over_sigma']:8.2f} {' '.join(ratios)} {found['cc_half_sigma_tau'][row]:8.4f} "
                    f"{known['cc_half']:8.4f} {known['cc_anomalous']:8.3f}"
                )
        return text

    def write(self, output: Path) -> list[Path]:
        """Write merged data and record into a folder, as a run has them; return the files.

        Raises
        ------
        ConfigError
            If the folder is that of a run, or a file.
        """
        directory = RunDirectory(output)
        if output.is_file() or directory.exists():
            raise ConfigError(f"-o {output}: is a {'file' if output.is_file() else 'run directory'}: choose another folder")
        for folder in (directory.merged, directory.gather):
            make_folder(folder)
        record = self.record()
        header = MtzHeader(self.file.cell, record["space_group"], self.file.wavelength, record["title"], self.warnings)
        record = finish(self.merged, header, Merge(), directory.merged).added_to(record)
        write_table_one(record, [], directory.merged)
        directory.write_json("merge.json", {"empty": False, **record})
        return [directory.merged / "merged.mtz", directory.merged / "table1.txt"]


def as_json(found: GivenMerged) -> dict[str, Any]:
    """Return the statistics as plain values: as ``merge.json`` has them, and those ``within`` Friedel mates."""
    within = {name: values.tolist() for name, values in found.observed.shells(WITHIN).items()}
    whole = {name: values.tolist()[0] for name, values in found.observed.overall(WITHIN).items()}
    return {**found.record(), "within": {"shells": within, "overall": whole}}
