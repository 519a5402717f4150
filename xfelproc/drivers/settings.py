"""Parameters of the drivers that have some."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from xfelproc.models.parameters import Parameters


class Dask(Parameters):
    """Table ``[execution.dask]``: where the driver ``dask`` finds its workers."""

    cluster: Annotated[
        Literal["local", "slurm"],
        Field(description="local: worker processes on this machine; slurm: jobs that dask-jobqueue submits"),
    ] = "local"
    scheduler: Annotated[
        str | None,
        Field(description="address (tcp://host:8786) or scheduler file of a running scheduler, whose workers have one thread each"),
    ] = None
    jobs: Annotated[int, Field(ge=1, le=4096, description="SLURM jobs to submit")] = 1
    cores: Annotated[int, Field(ge=1, le=1024, description="cores a SLURM job, with a worker each")] = 1
    memory: Annotated[str, Field(description="memory a SLURM job")] = "4GB"
    walltime: Annotated[str, Field(description="time limit of a SLURM job")] = "01:00:00"
    queue: Annotated[str | None, Field(description="SLURM partition; None: the site's default")] = None
    account: Annotated[str | None, Field(description="SLURM account; None: the user's default")] = None
    directives: Annotated[tuple[str, ...], Field(description="further #SBATCH lines, such as '--constraint=avx512'")] = ()
    prologue: Annotated[tuple[str, ...], Field(description="lines of shell before a worker starts: 'module load hdf5'")] = ()
    interface: Annotated[str | None, Field(description="network interface to talk over, such as ib0; None: Dask's choice")] = None
