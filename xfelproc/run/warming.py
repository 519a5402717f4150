"""Compiling the kernels before the workers need them: a thousand ranks that compile the same would take a minute each."""

from __future__ import annotations

import fcntl
import tempfile
import time
from pathlib import Path
from typing import Any

from xfelproc import kernels
from xfelproc.errors import DataError
from xfelproc.io.atomic import make_folder, write_atomic
from xfelproc.io.sources.files import expand_inputs
from xfelproc.run.config import JobConfig, load_document, make_config
from xfelproc.run.lineage import digest, instruction_set, versions
from xfelproc.run.recipes import default_opener, run_job
from xfelproc.run.sections import SECTIONS
from xfelproc.simulation import preset, simulate
from xfelproc.stages.inputs import CalibrationInputs
from xfelproc.stages.stills import Stills, process

FRAMES = 8
DETECTOR = {"size": (320, 320), "pixel_size": 0.4, "distance": 120.0}
"""Few frames on few pixels: what takes time is compiling."""


class _Quiet:
    """A reporter that says nothing."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Nothing."""

    def unit(self, frames: int, counts: dict[str, int]) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""


def warm_cache(config: JobConfig | None, folder: Path | None) -> str:
    """Compile what a run calls, by a run of simulated frames and, with a job, a frame of its own; return what was done in words.

    Parameters
    ----------
    config
        Job whose methods and kind of input are compiled for; None: the defaults.
    folder
        Where numba keeps compiled kernels, if that was said. A second call for the same finds a stamp there and does nothing.
    """
    if folder is None:
        return _compile(config)
    make_folder(folder)
    stamp = folder / f"warm-{_identity(config)[:16]}"
    with (folder / "warm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tasks of an array begin together on a node: one compiles, the others wait for it
        if stamp.exists():
            return f"the kernels in {folder} are compiled already"
        said = _compile(config)
        write_atomic(stamp, b"")
    return said


def _compile(config: JobConfig | None) -> str:
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="xfelproc-warm-") as scratch:
        _simulated_run(config, Path(scratch))
    note = "" if config is None else _own_frame(config)
    return f"compiled the kernels in {time.monotonic() - begun:.0f} s{note}"


def _identity(config: JobConfig | None) -> str:
    """Return what decides which kernels are compiled to what."""
    sources = [(path.name, path.stat().st_mtime_ns) for path in sorted(Path(kernels.__file__).parent.glob("*.py"))]
    # one job is like the next of a campaign if it takes the same kind of file through the same methods
    job = None if config is None else [Path(config.input.files[0]).suffix, config.section("index").cell is None, _methods(config)]
    return digest({"kernels": sources, "versions": versions(), "cpu": instruction_set(), "job": job})


def _methods(config: JobConfig) -> dict[str, Any]:
    return {
        name: {"method": config.section(name).method.model_dump(mode="json", exclude_none=True)}
        for name in SECTIONS
        if hasattr(config.section(name), "method")
    }


def _simulated_run(config: JobConfig | None, scratch: Path) -> None:
    simulate(preset("demo", frames=FRAMES, detector=DETECTOR), scratch)
    document = load_document(scratch / "job.toml")
    document |= {"execution": {"driver": "inline", "max_failed": 1.0}, "report": {"enabled": False}}
    for name, method in ({} if config is None else _methods(config)).items():
        document[name] = {**document.get(name, {}), **method}
    run_job(make_config(document, scratch), scratch / "with-cell", _Quiet())
    if config is not None and config.section("index").cell is None:
        document["index"] = {key: value for key, value in document["index"].items() if key not in ("cell", "space_group")}
        run_job(make_config(document, scratch), scratch / "without-cell", _Quiet())


def _own_frame(config: JobConfig) -> str:
    """Process the first frame of the job's input: kernels of its format and its type of pixels."""
    given = config.input
    path = next(iter(expand_inputs(given.files[:1])))
    try:
        source = default_opener()(str(path), given.settings())
        try:
            frame = source.read(0, 0)
            loaded = CalibrationInputs.load(given.dark, given.gain, given.calibration)
            constants = config.section("calibrate").constants(
                frame.detector, source.static_mask(), loaded.dark, loaded.gain, loaded.calibration
            )
        finally:
            source.close()
    except (DataError, OSError) as error:
        return f"; not for this input, whose first frame cannot be read: {error}"
    sections = {name: config.section(name) for name in ("calibrate", "spots", "index", "refine", "integrate")}
    process(Stills(**sections, target=sections["index"].target()), frame, constants)
    return ""
