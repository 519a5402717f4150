"""Stage ``combine``: combined experiments in ``gather``, where they are asked for."""

from __future__ import annotations

import shutil
from typing import Any

from xfelproc.io.shards import read_header, shard_path
from xfelproc.run.combining import CombineInput, combine_runs
from xfelproc.run.distance import source_settings
from xfelproc.run.geometry import final_geometry
from xfelproc.run.lineage import digest, file_identity, versions
from xfelproc.run.session import Session

NAME = "combined"
RECORD = "combine.json"


def run_stage(session: Session) -> None:
    """Write ``gather/combined.expt`` and ``.refl``, or ``combined.zarr``, unless they are there."""
    settings = session.config.combine
    if not settings.enabled:
        return
    output = session.directory.gather / f"{NAME}{'.zarr' if settings.format == 'zarr' else '.expt'}"
    lineage = _lineage(session)
    known = session.directory.read_json(RECORD)
    if (
        known is not None
        and known["lineage"] == lineage
        and all((session.directory.gather / name).exists() for name in known["files"])
    ):
        return
    discard(session)
    geometry = final_geometry(session.config, session.directory)
    place, opening = None if geometry is None else geometry.place, source_settings(session.config, session.directory)
    given = CombineInput(session.directory.path, session.manifest, session.result_stage, opening, place)
    done = combine_runs(session.gathering, [given], settings, output, session.opener)
    for line in done.lines():
        session.reporter.say(line)
    record: dict[str, Any] = {"lineage": lineage, "files": [path.name for path in done.files], "lattices": done.n_lattices}
    session.directory.write_json(RECORD, record | {"offered": done.n_offered, "left_out": dict(done.left_out)})


def discard(session: Session) -> None:
    """Remove what an earlier combination left."""
    session.directory.remove_json(RECORD)
    for path in session.directory.gather.glob(f"{NAME}*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _lineage(session: Session) -> str:
    run, settings = session.directory.path, session.config.combine
    headers = (read_header(shard_path(run, session.result_stage, unit)) for unit in range(session.manifest.n_units))
    shards = [header.lineage if header is not None else "" for header in headers]
    reference = file_identity(str(settings.reference or ""))
    return digest({"shards": shards, "settings": settings.model_dump(mode="json"), "reference": reference, "versions": versions()})
