"""What a campaign will cost: a few runs give a few frames each."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import ConfigError
from xfelproc.io.shards import read_frames, read_header
from xfelproc.run import toml
from xfelproc.run.campaign.plan import CampaignRun

LOADING = 20.0
"""A frame that takes this many times the median had kernels to load or to compile."""


@dataclass(frozen=True)
class Estimate:
    """CPU seconds a frame of each sampled run, and core-hours of all."""

    seconds_a_frame: Mapping[str, float]
    frames: int
    problems: Mapping[str, str]

    @property
    def core_hours(self) -> float | None:
        """Core-hours of all frames by the median of the sampled runs; None if no sample could be processed."""
        if not self.seconds_a_frame:
            return None
        return self.frames * median(self.seconds_a_frame.values()) / 3600.0

    @property
    def spread(self) -> tuple[float, float] | None:
        """The same by the cheapest and the dearest of them."""
        if not self.seconds_a_frame:
            return None
        values = self.seconds_a_frame.values()
        return self.frames * min(values) / 3600.0, self.frames * max(values) / 3600.0


def spread_over(n: int, wanted: int) -> list[int]:
    """Return up to ``wanted`` numbers below ``n``, evenly spread."""
    return sorted({int(i) for i in (np.arange(min(n, wanted)) + 0.5) * n / max(1, min(n, wanted))})


def estimate(folder: Path, runs: Sequence[CampaignRun], frames: Mapping[str, int], n_runs: int, n_frames: int) -> Estimate:
    """Process ``n_frames`` of each of ``n_runs`` runs in this machine's idle time, and see what they cost.

    Parameters
    ----------
    folder
        Where the samples are processed; it is emptied.
    runs
        The runs that are to do.
    frames
        How many frames each of them has.
    """
    known = [run for run in runs if frames.get(run.name)]
    seconds: dict[str, float] = {}
    problems: dict[str, str] = {}
    for number in spread_over(len(known), n_runs):
        run = known[number]
        target = folder / run.name
        try:
            seconds[run.name] = _sample(run, target, frames[run.name], n_frames)
        except ConfigError as error:
            problems[run.name] = str(error)
        finally:
            shutil.rmtree(target, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    return Estimate(seconds, sum(frames[run.name] for run in known), problems)


def _sample(run: CampaignRun, target: Path, n_frames: int, wanted: int) -> float:
    """Return CPU seconds a frame.

    Raises
    ------
    ConfigError
        If the sample cannot be processed; says why.
    """
    document = run.config().resolved()
    chosen = spread_over(n_frames, wanted)
    document["input"]["frames"] = chosen
    document["execution"] = {"driver": "inline", "unit_size": len(chosen)}
    document["report"] = {"enabled": False}
    target.mkdir(parents=True)
    job = target / "job.toml"
    job.write_text(toml.dumps(document))
    line = [sys.executable, "-m", "xfelproc", "run", str(job), "--output", str(target / "run")]
    done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    shards = sorted((target / "run" / "shards" / "process").rglob("*.h5"))
    headers = [header for header in map(read_header, shards) if header is not None]
    if not headers:
        last = done.stderr.strip().splitlines()[-1:] or ["no frame was processed"]
        raise ConfigError(last[0].removeprefix("xfelproc: "))
    return 1e-3 * typical(np.concatenate([read_frames(path)["times"].sum(axis=1) for path in shards]))


def typical(times: NDArray[np.float64]) -> float:
    """Return the mean of the times of frames, those left out that loaded or compiled kernels on the way."""
    return float(np.mean(times[times <= LOADING * np.median(times)]))
