"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="override a key of the job file; may be repeated")
]
Frames = Annotated[
    list[str] | None, typer.Argument(metavar="FILE...|JOB.toml", help="files, patterns, folders, @lists; or a job file")
]
DriverName = Annotated[str | None, typer.Option("--driver", help="inline, pool, mpi or dask")]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="worker processes (default: as many as CPUs)")]
HitsOf = Annotated[Path | None, typer.Option("--hits", metavar="RUN", help="take the hits of this run; no files are named then")]
Which = Annotated[str, typer.Option("--which", help="with --hits: hits, indexed, or blank frames instead")]
