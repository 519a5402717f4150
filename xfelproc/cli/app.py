"""All commands in one application; each is imported when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xfelproc.cli.calibrate_app import make_calibrate_app
from xfelproc.cli.options import DriverName, Frames, HitsOf, Overrides, Which, Workers

JobFile = Annotated[Path, typer.Argument(metavar="JOB.toml", help="job file")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="run directory")]
OutputFolder = Annotated[Path | None, typer.Option("--output", "-o", help="run directory (default: the job's name with .run)")]


def make_app() -> typer.Typer:
    """Return the application."""
    app = typer.Typer(
        name="xfelproc",
        help="Bulk processing for serial crystallography: from raw frames to merged reflections.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    for command in (
        demo,
        inspect,
        init,
        check,
        run,
        submit,
        campaign,
        warm,
        status,
        report,
        export,
        merge,
        combine,
        consolidate,
        average,
        simulate,
        detector_shifts,
        detector_statistics,
    ):
        app.command(name=command.__name__.replace("_", "-"))(command)
    app.add_typer(make_calibrate_app(), name="calibrate")
    app.callback()(_version)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        from xfelproc.run.lineage import versions

        typer.echo(f"xfelproc {versions()['xfelproc']}")
        raise typer.Exit


def _version(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="show the version")] = False,
) -> None:
    pass


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for frames and run")] = Path("demo"),
    frames: Annotated[int, typer.Option("--frames", "-n", min=20, help="frames to simulate")] = 200,
    driver: Annotated[str, typer.Option("--driver", help="inline, pool, mpi or dask")] = "pool",
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="worker processes (default: as many as CPUs)")] = None,
) -> None:
    """Simulate a small experiment, process, merge, report: no input needed."""
    from xfelproc.run.early import start_driver

    start_driver(driver)
    from xfelproc.cli.demo import run_demo

    raise typer.Exit(run_demo(output, frames, driver, workers))


def inspect(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="files, patterns, folders, or @list.txt")],
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False,
    geometry: Annotated[Path | None, typer.Option("--geometry", help="show the files with this .geom, .expt or NeXus file")] = None,
) -> None:
    """Show what is in files: format, frames, detector, beam, scan, mask, and what is missing or odd."""
    from xfelproc.cli.inspect import inspect as show

    show(files, as_json, geometry)


def init(path: Annotated[Path, typer.Argument(metavar="JOB.toml", help="file to write")] = Path("job.toml")) -> None:
    """Write a commented template of a job file."""
    from xfelproc.cli.jobs import write_template

    write_template(path)


def check(
    job: JobFile,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False,
) -> None:
    """Validate a job and count its work units, without reading pixels."""
    from xfelproc.cli.jobs import check_job

    check_job(job, overrides or [], as_json)


def run(
    job: JobFile,
    output: OutputFolder = None,
    driver: Annotated[str | None, typer.Option("--driver", help="inline, pool, mpi or dask")] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="worker processes (default: as many as CPUs)")] = None,
    overrides: Overrides = None,
    only: Annotated[
        str | None, typer.Option("--only", metavar="STAGE", help="run some stages alone, as cell,process or merge,report")
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="discard the results in the run directory and begin anew")] = False,
    wait: Annotated[float, typer.Option("--wait", min=0, help="seconds to wait for another run that is at work there")] = 0.0,
) -> None:
    """Run a job; goes on from what is in the run directory."""
    from xfelproc.run.early import start_early

    start_early(job, driver, overrides or [])
    from xfelproc.cli.jobs import run_command

    raise typer.Exit(run_command(job, output, driver, workers, overrides or [], only, restart, wait))


def submit(
    jobs: Annotated[list[Path], typer.Argument(metavar="JOB.toml...", help="job files; several make an array of runs")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="run directory; of several jobs the folder of their run directories")
    ] = None,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the scripts and submit nothing; needs no SLURM")] = False,
    check_input: Annotated[
        bool, typer.Option("--check/--no-check", help="open the input before submitting, as 'check' does")
    ] = True,
) -> None:
    """Run jobs under SLURM, as their section [slurm] says; they are requeued until they are done."""
    from xfelproc.cli.submit import submit as submit_jobs

    submit_jobs(jobs, output, overrides or [], dry_run, check_input)


def warm(
    job: Annotated[Path | None, typer.Argument(metavar="[JOB.toml]", help="job whose methods and input are compiled for")] = None,
) -> None:
    """Compile the kernels into the cache, in $NUMBA_CACHE_DIR if that is set, so that no worker has to."""
    from xfelproc.run.early import make_cache_folder

    folder = make_cache_folder()
    from xfelproc.cli.submit import warm as warm_cache

    warm_cache(job, folder)


def status(
    folder: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable; with --follow an object a line")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="show how it goes on until the run ends; Ctrl-C leaves")] = False,
    every: Annotated[
        float | None, typer.Option("--every", min=0.1, help="seconds between looks (default: 1 on a terminal, else 10)")
    ] = None,
) -> None:
    """Show how far a run is."""
    from xfelproc.cli import status as command

    if follow:
        command.follow(folder, as_json, every)
    else:
        command.show_status(folder, as_json)


def report(folder: RunFolder) -> None:
    """Write the report of a run again."""
    from xfelproc.cli.jobs import write_report

    write_report(folder)


def export(
    folder: RunFolder,
    to: Annotated[
        str, typer.Option("--to", help="mtz, mtz-halves, mmcif, mmcif-unmerged, hkl, hkl-halves, table1, stream, dials or geom")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="file to write; dials: X.expt, and X.refl beside it")],
    setting: Annotated[
        str, typer.Option("--setting", help="stream, dials: lattices as merging resolved an ambiguity (resolved), or as indexed")
    ] = "resolved",
    group: Annotated[str | None, typer.Option("--group", help="merged data of this group alone, see [merge.groups]")] = None,
) -> None:
    """Write results in another program's format."""
    from xfelproc.run.exporting import export as export_run

    for path in export_run(folder, to, output, setting, group):
        typer.echo(f"wrote {path}")


def merge(
    file: Annotated[Path, typer.Argument(metavar="FILE.mtz", help="scaled unmerged MTZ, of this or another program")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="folder for the merged data; 'export' takes it as RUN")
    ] = None,
    shells: Annotated[int, typer.Option("--shells", min=1, max=200, help="resolution shells, of equal volume")] = 10,
    anomalous: Annotated[
        bool, typer.Option("--anomalous", help="print R values and CC1/2 of I(+) and I(-) each for itself")
    ] = False,
    absences: Annotated[
        bool, typer.Option("--absences/--no-absences", help="merge reflections that the space group forbids, or leave them out")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable, with all statistics")] = False,
) -> None:
    """Merge a scaled unmerged MTZ as it is, and print its statistics."""
    from xfelproc.cli.merge import merge as merge_file

    merge_file(file, output, shells, absences, anomalous, as_json)


def combine(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run directories")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="X.expt (DIALS, with X.refl beside it), or X.zarr (all tables of these lattices)")
    ],
    beam: Annotated[str | None, typer.Option("--beam", help="each, shared or average")] = None,
    detector: Annotated[str | None, typer.Option("--detector", help="each, shared or average")] = None,
    reference: Annotated[
        Path | None, typer.Option("--reference", help="geometry file whose detector all share (with --detector shared)")
    ] = None,
    reflections: Annotated[str | None, typer.Option("--reflections", help="indexed or integrated")] = None,
    subset: Annotated[int | None, typer.Option("--subset", "-n", min=1, help="keep so many of the lattices that pass")] = None,
    by: Annotated[str | None, typer.Option("--by", help="which: random, reflections or significance")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="of the draw at random")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="combine.KEY=VALUE", help="any key of section [combine]; may be repeated")
    ] = None,
    driver: Annotated[str, typer.Option("--driver", help="inline, pool, mpi or dask")] = "pool",
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="worker processes (default: as many as CPUs)")] = None,
) -> None:
    """Unite the lattices of runs, filtered, with shared or averaged models, as DIALS files or one Zarr group."""
    from xfelproc.run.early import start_driver

    start_driver(driver)
    from xfelproc.cli import combine as command

    settings = command.settings_of(
        overrides or [],
        beam=beam,
        detector=detector,
        reference=reference,
        reflections=reflections,
        n_subset=subset,
        subset=by,
        seed=seed,
    )
    command.combine(runs, output, settings, driver, workers)


def consolidate(
    folder: RunFolder,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="X.zarr", help="folder to make")],
) -> None:
    """Write all tables of a run as one Zarr group, readable with zarr or dask alone."""
    from xfelproc.cli.consolidate import run_consolidate

    run_consolidate(folder, output)


def campaign(
    path: Annotated[Path, typer.Argument(metavar="ARCHIVE.toml", help="campaign file")],
    plan: Annotated[bool, typer.Option("--plan", help="say what would be done and what it will cost, and stop")] = False,
    show: Annotated[bool, typer.Option("--status", help="show where each run and group stands, and stop")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="try the runs that failed again")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="with --status: machine-readable")] = False,
    driver: Annotated[str | None, typer.Option("--driver", help="driver of each run on this machine: inline, pool or dask")] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="workers of each run")] = None,
) -> None:
    """Process many runs and merge them by groups; goes on from what is there."""
    from xfelproc.cli.campaign import campaign_command

    options = [*(["--driver", driver] if driver else []), *(["--workers", str(workers)] if workers else [])]
    raise typer.Exit(campaign_command(path, plan, show, retry, as_json, options))


def average(
    frames: Frames = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="X.h5", help="file to write; X.png and X.geom beside it")
    ] = Path("average.h5"),
    hits: HitsOf = None,
    which: Which = "hits",
    raw: Annotated[bool, typer.Option("--raw", help="values as they are in the files; else photons, as [calibrate] says")] = False,
    driver: DriverName = None,
    workers: Workers = None,
    overrides: Overrides = None,
) -> None:
    """Average frames: mean, standard deviation and maximum (virtual powder) of files, or of the hits of a run."""
    from xfelproc.run.early import start_frames

    start_frames(frames or [], hits, driver, overrides or [])
    from xfelproc.cli.average import average_command
    from xfelproc.run.averaging import FrameChoice

    choice = FrameChoice(tuple(frames or ()), tuple(overrides or ()), hits, which, driver, workers)
    average_command(choice, output, raw)


def simulate(
    name: Annotated[str, typer.Argument(metavar="PRESET", help="what to simulate; an unknown name lists them")] = "demo",
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for frames, truth, geometry, cell, job file")] = Path(
        "simulated"
    ),
    frames: Annotated[int | None, typer.Option("--frames", "-n", min=1, help="number of frames (default: the preset's)")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="another seed gives other crystals and frames")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="another setting, for example hit_fraction=0 or raw.darks=20; may be repeated"
        ),
    ] = None,
) -> None:
    """Simulate frames whose truth is known, with a job file that processes them."""
    from xfelproc.cli.simulate import simulate as run_simulation

    run_simulation(name, output, frames, seed, changes)


Picture = Annotated[Path | None, typer.Option("--picture", metavar="X.html", help="write a page with pictures")]


def detector_shifts(
    first: Annotated[Path, typer.Argument(metavar="A", help="geometry (.geom, .expt, NeXus) or run directory")],
    second: Annotated[Path, typer.Argument(metavar="B", help="the same detector's other geometry")],
    level: Annotated[int | None, typer.Option("--level", min=0, help="this level of the hierarchy alone (0: the detector)")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable, mm and degrees")] = False,
    picture: Picture = None,
) -> None:
    """Show how the panels of a detector stand in B compared with A: by level, with and without the motion of the whole."""
    from xfelproc.cli.detector import show_shifts

    show_shifts(first, second, level, as_json, picture)


def detector_statistics(
    folder: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False,
    picture: Picture = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="worker processes on this machine")] = 1,
) -> None:
    """Show the residuals of indexed spots on each panel of a run: fast and slow, radial and transverse, and the angle ΔΨ."""
    from xfelproc.cli.detector import show_statistics

    show_statistics(folder, as_json, picture, workers)
