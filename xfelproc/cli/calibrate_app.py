"""The commands of ``xfelproc calibrate``; what they do is imported when one is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xfelproc.cli.options import DriverName, Frames, HitsOf, Overrides, Which, Workers

AverageFile = Annotated[
    Path | None, typer.Option("--average", metavar="X.h5", help="a file of 'xfelproc average' instead of frames")
]
Constants = Annotated[Path, typer.Option("--output", "-o", metavar="X.h5", help="constants file to write, or to add to")]


def make_calibrate_app() -> typer.Typer:
    """Return the application."""
    app = typer.Typer(help="Calibrate a detector: darks, gains, masks, powder rings.", no_args_is_help=True, rich_markup_mode=None)
    for command in (dark, gain, mask, powder):
        app.command(name=command.__name__)(command)
    return app


def dark(
    frames: Frames = None,
    output: Constants = Path("constants.h5"),
    stage: Annotated[
        int | None, typer.Option("--stage", min=0, help="gain stage of these frames, where their values do not tell it (0)")
    ] = None,
    stages: Annotated[
        str | None, typer.Option("--stages", help="how values tell the gain stage: bits (JUNGFRAU), epix10k, array or none")
    ] = None,
    min_frames: Annotated[int | None, typer.Option("--min-frames", help="fewest frames of a gain stage (10)")] = None,
    outliers: Annotated[
        float | None, typer.Option("--outliers", help="σ from the mean beyond which values are left out (5)")
    ] = None,
    driver: DriverName = None,
    workers: Workers = None,
    overrides: Overrides = None,
) -> None:
    """Pedestal, noise and bad pixels from dark frames, by gain stage; added to the constants file if it is there."""
    from xfelproc.run.early import start_frames

    start_frames(frames or [], None, driver, overrides or [])
    from xfelproc.algorithms.calibration import Darks
    from xfelproc.cli.calibrate import options, with_progress
    from xfelproc.run.averaging import FrameChoice
    from xfelproc.run.calibrating import run_dark

    given = [*(overrides or ()), *([f"calibrate.gain_stages={stages}"] if stages else [])]
    choice = FrameChoice(tuple(frames or ()), tuple(given), driver=driver, workers=workers)
    darks = options(Darks, stage=stage, min_frames=min_frames, outliers=outliers)
    with_progress(lambda reporter: run_dark(choice, darks, output, reporter))


def gain(
    frames: Frames = None,
    output: Constants = Path("constants.h5"),
    constants: Annotated[
        Path | None,
        typer.Option("--constants", metavar="X.h5", help="pedestal and noise, of 'calibrate dark' (or input.calibration)"),
    ] = None,
    hits: HitsOf = None,
    which: Which = "hits",
    driver: DriverName = None,
    workers: Workers = None,
    overrides: Overrides = None,
) -> None:
    """Gain of each panel (ADU a photon) from ordinary frames: background or powder, the scatter of photons tells it."""
    from xfelproc.run.early import start_frames

    start_frames(frames or [], hits, driver, overrides or [])
    from xfelproc.cli.calibrate import with_progress
    from xfelproc.run.averaging import FrameChoice
    from xfelproc.run.calibrating import run_gain

    given = [*(overrides or ()), *([f'input.calibration="{constants.absolute()}"'] if constants else [])]
    choice = FrameChoice(tuple(frames or ()), tuple(given), hits, which, driver, workers)
    with_progress(lambda reporter: run_gain(choice, output, reporter))


def mask(
    frames: Frames = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="X.h5", help="file to write")] = Path("mask.h5"),
    average: AverageFile = None,
    hits: HitsOf = None,
    which: Which = "hits",
    add: Annotated[
        list[str] | None, typer.Option("--add", metavar="FILE", help="take over this mask's pixels; may be repeated")
    ] = None,
    pixels: Annotated[bool, typer.Option("--pixels/--no-pixels", help="find pixels that deviate from their neighbours")] = True,
    shadow: Annotated[bool, typer.Option("--shadow/--no-shadow", help="find beam stop and shadows")] = True,
    edge: Annotated[int | None, typer.Option("--edge", help="pixels along each panel edge")] = None,
    d_min: Annotated[float | None, typer.Option("--d-min", help="finest resolution that is used, Å")] = None,
    d_max: Annotated[float | None, typer.Option("--d-max", help="coarsest resolution that is used, Å")] = None,
    ice: Annotated[bool, typer.Option("--ice", help="mask the rings of hexagonal ice")] = False,
    n_sigma: Annotated[float | None, typer.Option("--n-sigma", help="how far pixels deviate, robust σ of their block (10)")] = None,
    shadow_level: Annotated[
        float | None, typer.Option("--shadow-level", help="share of its ring below which a pixel is in shadow")
    ] = None,
    shadow_grow: Annotated[int | None, typer.Option("--shadow-grow", help="pixels by which shadows are enlarged (3)")] = None,
    driver: DriverName = None,
    workers: Workers = None,
    overrides: Overrides = None,
) -> None:
    """Make a static mask: bad pixels, beam stop, shadows, edges, resolution, ice; with the reasons as bits."""
    from xfelproc.run.early import start_frames

    if average is None:
        start_frames(frames or [], hits, driver, overrides or [])
    from xfelproc.algorithms.calibration.masks import StaticMask
    from xfelproc.cli.calibrate import options, with_progress
    from xfelproc.run.averaging import FrameChoice
    from xfelproc.run.masking import run_mask

    choice = FrameChoice(tuple(frames or ()), tuple(overrides or ()), hits, which, driver, workers)
    settings = options(
        StaticMask,
        pixels=pixels,
        shadow=shadow,
        edge_pixels=edge,
        d_min=d_min,
        d_max=d_max,
        ice=ice,
        n_sigma=n_sigma,
        shadow_level=shadow_level,
        shadow_grow=shadow_grow,
    )
    with_progress(lambda reporter: run_mask(choice, average, settings, add or (), output, reporter))


def powder(
    frames: Frames = None,
    calibrant: Annotated[str | None, typer.Option("--calibrant", help="ice, 'silver behenate', LaB6 or CeO2")] = None,
    spacing: Annotated[list[float] | None, typer.Option("--d", help="d-spacing of a ring, Å, instead; may be repeated")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="X.geom", help="write the geometry found: .geom, .expt or .nxs")
    ] = None,
    average: AverageFile = None,
    hits: HitsOf = None,
    which: Which = "hits",
    tilt: Annotated[bool, typer.Option("--tilt", help="find the detector's tilt, too")] = False,
    maximum: Annotated[bool, typer.Option("--max", help="use the maximum of the frames instead of their mean")] = False,
    search_center: Annotated[
        float | None, typer.Option("--search-center", help="how far off the beam centre may be, px (20)")
    ] = None,
    search_distance: Annotated[
        float | None, typer.Option("--search-distance", help="how far off the distance may be, relative (0.1)")
    ] = None,
    window: Annotated[
        float | None, typer.Option("--window", help="half the width of the strip a ring is measured in, px (8)")
    ] = None,
    driver: DriverName = None,
    workers: Workers = None,
    overrides: Overrides = None,
) -> None:
    """Find beam centre and distance by powder rings of known d-spacings."""
    from xfelproc.run.early import start_frames

    if average is None:
        start_frames(frames or [], hits, driver, overrides or [])
    from xfelproc.algorithms.calibration.powder import Powder
    from xfelproc.cli.calibrate import options, with_progress
    from xfelproc.run.averaging import FrameChoice
    from xfelproc.run.masking import run_powder, spacings_of

    choice = FrameChoice(tuple(frames or ()), tuple(overrides or ()), hits, which, driver, workers)
    settings = options(Powder, tilt=tilt, search_center=search_center, search_distance=search_distance, window=window)
    spacings = spacings_of(calibrant, spacing or ())
    with_progress(lambda reporter: run_powder(choice, average, settings, spacings, maximum, output, reporter))
