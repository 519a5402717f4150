"""The run directory: what is in it, and whether this job may go on in it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xfelproc.errors import ConfigError, DataError, OutputError, RunDirectoryError
from xfelproc.io.atomic import make_folder, sweep_temporaries, write_atomic
from xfelproc.io.manifest import Manifest, read_manifest, write_manifest
from xfelproc.run.config import JobConfig, dump_config, load_document
from xfelproc.run.lineage import changed, instruction_set, versions

OWN = ("job.toml", "manifest.h5", "journal.jsonl", "lineage.json", "report.html")
OWN_FOLDERS = ("shards", "gather", "merged", "logs")
SHARD_SECTIONS = ("input", "calibrate", "spots", "index", "refine", "integrate")
"""Sections that the shards depend on; all others may be changed between runs."""


@dataclass(frozen=True)
class RunDirectory:
    """Paths of a run."""

    path: Path

    @property
    def job(self) -> Path:
        """The job as resolved."""
        return self.path / "job.toml"

    @property
    def manifest(self) -> Path:
        """Sources and units."""
        return self.path / "manifest.h5"

    @property
    def gather(self) -> Path:
        """What is folded from shards: consensus, sample."""
        return self.path / "gather"

    @property
    def merged(self) -> Path:
        """Merged and unmerged reflections."""
        return self.path / "merged"

    @property
    def report(self) -> Path:
        """The report."""
        return self.path / "report.html"

    def exists(self) -> bool:
        """Return whether this is a run directory: a folder with a job file alone may be the user's own."""
        return self.job.is_file() and (self.manifest.is_file() or self.gather.is_dir())

    def has_shards(self) -> bool:
        """Return whether some unit is done."""
        return any((self.path / "shards").rglob("*.h5"))

    def create(self) -> None:
        """Make the folder, or see that it is a run's.

        Raises
        ------
        RunDirectoryError
            If it holds something else, or cannot be made.
        """
        if self.path.is_file():
            raise RunDirectoryError(f"{self.path} is a file: choose another --output")
        if (
            self.path.is_dir()
            and not self.exists()
            and (self.job.exists() or any(p.name not in (*OWN, *OWN_FOLDERS, "lock") for p in self.path.iterdir()))
        ):
            raise RunDirectoryError(f"{self.path} holds files that are not of a run: choose another --output")
        try:
            make_folder(self.path)
            probe = self.path / ".writable"
            write_atomic(probe, b"")
            probe.unlink()
        except OutputError as error:
            raise RunDirectoryError(str(error)) from error

    def check_parameters(self, config: JobConfig) -> None:
        """Refuse a job whose parameters the shards here were not made with.

        Raises
        ------
        RunDirectoryError
            Names what has changed and how to go on.
        """
        if not self.exists() or not self.has_shards():
            return
        before, after = relevant(load_document(self.job)), relevant(config.resolved())
        lines = changed(before, after)
        lines += changed(self.recorded_versions(), versions(), "version of ")
        if lines:
            what = "\n  ".join(lines)
            raise RunDirectoryError(
                f"{self.path}: the results here were made with other parameters:\n  {what}\n"
                "choose another --output, undo the change, or give --restart to discard them and begin anew"
            )

    def recorded_versions(self) -> dict[str, str]:
        """Return the versions that made the results here.

        Raises
        ------
        RunDirectoryError
            If that is not known.
        """
        try:
            found: dict[str, str] = json.loads((self.path / "lineage.json").read_text())["versions"]
        except (OSError, ValueError, KeyError) as error:
            raise RunDirectoryError(
                f"{self.path / 'lineage.json'} is missing or damaged, so that nobody knows what made the results here: "
                "choose another --output, or give --restart to discard them"
            ) from error
        return found

    def clear(self) -> None:
        """Discard all results of the run; the journal stays."""
        for name in ("shards", "gather", "merged"):
            if (self.path / name).is_dir():
                shutil.rmtree(self.path / name)
        self.report.unlink(missing_ok=True)

    def publish(self, config: JobConfig, manifest: Manifest) -> None:
        """Write job, manifest and lineage; sweep what killed attempts left. Only for the holder of the lock."""
        sweep_temporaries(self.path)
        make_folder(self.gather)
        make_folder(self.merged)
        write_atomic(self.job, dump_config(config).encode())
        write_manifest(self.manifest, manifest)
        content = {"versions": versions(), "instructions": instruction_set()}
        write_atomic(self.path / "lineage.json", json.dumps(content, indent=1).encode())

    def read_manifest(self) -> Manifest:
        """Return the manifest.

        Raises
        ------
        ConfigError
            If this is no run directory.
        """
        if not self.exists():
            raise ConfigError(f"{self.path} is no run directory: there is no job.toml with a manifest.h5 in it")
        return read_manifest(self.manifest)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return a JSON file of ``gather``; None if it is not there or damaged."""
        try:
            content = json.loads((self.gather / name).read_text())
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Publish a JSON file in ``gather``."""
        write_atomic(self.gather / name, json.dumps(content, indent=1, allow_nan=True).encode())

    def remove_json(self, name: str) -> None:
        """Discard a JSON file of ``gather``."""
        (self.gather / name).unlink(missing_ok=True)


def relevant(document: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a resolved job that the shards depend on."""
    part: dict[str, Any] = {name: document.get(name, {}) for name in SHARD_SECTIONS}
    part["execution"] = {"unit_size": document.get("execution", {}).get("unit_size")}
    if not part["index"].get("cell"):
        part["sample"] = document.get("sample", {})
    elif not part["input"].get("distance"):
        part["sample"] = {"max_distance_error": document.get("sample", {}).get("max_distance_error")}
    return part


def open_run(path: Path) -> RunDirectory:
    """Return an existing run directory.

    Raises
    ------
    ConfigError
        If it is none.
    """
    run = RunDirectory(path)
    if not run.exists():
        raise ConfigError(f"{path} is no run directory: there is no job.toml with a manifest.h5 in it")
    if not run.manifest.is_file():
        raise ConfigError(f"{path}: no run was started here (no manifest.h5): run its job first")
    try:
        run.read_manifest()
    except DataError as error:
        raise ConfigError(f"{path}: the manifest is damaged: run its job again ({error})") from error
    return run
