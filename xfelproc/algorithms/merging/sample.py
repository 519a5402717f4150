"""A sample of whole lattices, and what is learnt from it: widths and Wilson's start.

Lattices are taken by a priority that is a hash of where they stand in the run, so that the sample of all shards is made of
the samples of parts of them, whatever the parts. Of a run of no more than 60 000 observations it is all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.merging.observations import Observations, concatenate
from xfelproc.algorithms.merging.partiality import (
    SHELLS,
    Widths,
    fit_common_width,
    observed_variance,
    resolution_bins,
    volume_limits,
)
from xfelproc.algorithms.merging.reduction import mix
from xfelproc.algorithms.merging.settings import Merge
from xfelproc.kernels.scaling import replay_scales, wilson_history

Floats = NDArray[np.float64]
Arrays = dict[str, NDArray[Any]]

MAX_OBSERVATIONS = 60_000
SMALLEST_PARTIALITY = 1e-6
"""Below it an observation says nothing, whatever the user asks for."""
ROUNDS = 8
_UNUSED = ("polarization", "panel", "fast", "slow", "flags")


def priorities(block: int | NDArray[np.int64], lattice: int | NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return the priorities (n,) of lattices: small ones go into the sample.

    Parameters
    ----------
    block
        Number of the shard, or (n,) of each lattice.
    lattice
        (n,) numbers of the lattices in their shards, or n: 0 ... n - 1.
    """
    number = np.arange(lattice) if isinstance(lattice, int) else lattice
    return mix((np.asarray(block, dtype=np.uint64) << np.uint64(24)) + number.astype(np.uint64))


def among_smallest(priority: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """Return which priorities are among the smallest ``share`` of all that are possible."""
    if share >= 1.0:
        return np.ones(len(priority), dtype=bool)
    likely: NDArray[np.bool_] = priority < np.uint64(share * 2.0**64)
    return likely


@dataclass(frozen=True)
class Sample:
    """Observations of the lattices of smallest priority, (n,), in the order of the run."""

    observations: Observations
    priority: NDArray[np.uint64]

    @classmethod
    def of(cls, observations: Observations, priority: NDArray[np.uint64]) -> Sample:
        """Return the sample of some lattices: whole ones by priority, until there are 60 000 observations."""
        counts = np.bincount(observations.lattice, minlength=observations.n_lattices)
        order = np.argsort(priority, kind="stable")
        before = np.cumsum(counts[order]) - counts[order]
        chosen = np.sort(order[(before < MAX_OBSERVATIONS) & (counts[order] > 0)])
        number = np.full(observations.n_lattices, -1)
        number[chosen] = np.arange(len(chosen))
        rows = observations.select(number[observations.lattice] >= 0)
        columns = {f.name: getattr(rows, f.name) for f in fields(rows)}
        columns |= {name: np.zeros_like(columns[name]) for name in _UNUSED}  # nobody asks for them: they compress to nothing
        columns |= {"lattice": number[rows.lattice], "half": rows.half[chosen], "n_lattices": len(chosen)}
        return cls(Observations(**columns), priority[chosen])

    def with_more(self, other: Sample) -> Sample:
        """Return the sample of the lattices of both."""
        both = concatenate([self.observations, other.observations])
        return Sample.of(both, np.concatenate([self.priority, other.priority]))

    def arrays(self) -> Arrays:
        """Return it as named arrays; `from_arrays` takes them back."""
        names = [f.name for f in fields(Observations) if f.name != "n_lattices"]
        return {f"sample_{name}": getattr(self.observations, name) for name in names} | {"sample_priority": self.priority}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Sample:
        """Return the sample that `arrays` came from."""
        names = [f.name for f in fields(Observations) if f.name != "n_lattices"]
        columns = {name: arrays[f"sample_{name}"] for name in names}
        observations = Observations(**columns, n_lattices=len(arrays["sample_half"]))
        return cls(observations, arrays["sample_priority"].astype(np.uint64))


@dataclass(frozen=True)
class Beginning:
    """What all parts of a run must share before they are scaled.

    ``widths`` are w0 (1/Å) and w1 of partiality; ``limits`` (1/Å³) bound the shells of Wilson's statistics, ``shell_means`` are
    the mean intensities in them, ``means`` (rounds, shells) and ``typical`` (rounds,) how they came about, see
    `kernels.scaling.wilson_history`.
    """

    widths: Floats
    limits: Floats
    shell_means: Floats
    means: Floats
    typical: Floats

    @property
    def typical_scale(self) -> float:
        """Scale of the usual lattice, to which the shell means belong."""
        return float(self.typical[-1]) if len(self.typical) else 1.0

    def arrays(self) -> Arrays:
        """Return it as named arrays; `from_arrays` takes them back."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Beginning:
        """Return what `arrays` came from."""
        return cls(**{f.name: arrays[f.name] for f in fields(cls)})

    def shells(self, inverse_d2: Floats) -> NDArray[np.int64]:
        """Return the shell of each observation."""
        return resolution_bins(inverse_d2, SHELLS, (float(self.limits[0]), float(self.limits[1])))


def begin(sample: Sample, settings: Merge) -> Beginning:
    """Return what the sample says."""
    observations = sample.observations
    widths = np.array(fit_common_width(observations) if settings.fits_width else (np.nan, np.nan))
    kept, partiality = with_partiality(observations, widths, settings)
    partiality = partiality * peak_height(kept.inverse_d2, widths)
    limits = volume_limits(kept.inverse_d2)
    _, shell_means, means, typical = wilson_history(
        kept.intensity,
        observed_variance(kept),
        partiality,
        kept.lattice,
        resolution_bins(kept.inverse_d2, SHELLS, limits),
        kept.n_lattices,
        SHELLS,
        ROUNDS,
    )
    return Beginning(widths, np.array(limits), shell_means, means, typical)


def partialities(observations: Observations, widths: Floats, settings: Merge) -> Floats:
    """Return the partiality of each observation, (n,)."""
    if settings.fits_width:
        return Widths.common(widths, observations.n_lattices).partiality(observations)
    return observations.partiality if settings.partiality == "model" else np.ones(len(observations))


def peak_height(inverse_d2: Floats, widths: Floats) -> Floats:
    """Return w0 / w: a broader reflection is weaker at its peak (`kernels.partiality`); 1 where there are no widths."""
    if not np.all(np.isfinite(widths)):
        return np.ones(len(inverse_d2))
    height: Floats = widths[0] / np.sqrt(widths[0] ** 2 + widths[1] ** 2 * inverse_d2)
    return height


def full_enough(partiality: Floats, settings: Merge) -> NDArray[np.bool_]:
    """Return which partialities are large enough to be merged."""
    enough: NDArray[np.bool_] = partiality >= max(settings.min_partiality, SMALLEST_PARTIALITY)
    return enough


def with_partiality(observations: Observations, widths: Floats, settings: Merge) -> tuple[Observations, Floats]:
    """Return the observations that are full enough, and their partialities."""
    partiality = partialities(observations, widths, settings)
    keep = full_enough(partiality, settings)
    return observations.select(keep), partiality[keep]


def starting_scales(observations: Observations, partiality: Floats, beginning: Beginning) -> Floats:
    """Return Wilson's scale of each lattice, (n_lattices,)."""
    return replay_scales(
        observations.intensity,
        observed_variance(observations),
        partiality * peak_height(observations.inverse_d2, beginning.widths),
        observations.lattice,
        beginning.shells(observations.inverse_d2),
        observations.n_lattices,
        beginning.means,
        beginning.typical,
    )
