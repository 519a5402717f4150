"""Where a refinement of the detector stands between two passes over the data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from xfelproc.algorithms.metrology.prior import Spreads
from xfelproc.models.experiment import Beam, Detector

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Step:
    """What one pass found.

    ``loss`` is half the robust weighted sum of squares, ``fall`` what it fell by, with the restraint, since the place before (NaN:
    there is none, or it had other bounds); ``rmsd`` (px) and ``rmsd_psi`` (degrees) are over the spots within their bounds,
    ``step`` is the root mean square of the moves proposed, in their standard deviations (NaN: the place is not accepted).
    """

    level: int
    n_crystals: int
    n_spots: int
    n_used: int
    loss: float
    rmsd: float
    rmsd_psi: float
    step: float
    fall: float
    accepted: bool


@dataclass(frozen=True)
class LevelOutcome:
    """The end of one level.

    Arrays of moves are (group, 6) mm and radians, see `xfelproc.geometry.hierarchy`: ``moves`` from where the groups would be if
    they had only followed the level above from the origin, ``change`` from where the level began; the ``sigma`` of moves, and
    ``sigma_internal`` without movements of the whole; ``half_difference`` is even minus odd half-set, ``half_sigma`` the standard
    deviation that it should have. ``tied`` groups follow the others of the group above.
    """

    level: int
    detector: Detector
    names: tuple[str, ...]
    n_panels: NDArray[np.int32]
    n_spots: NDArray[np.int64]
    tied: NDArray[np.bool_]
    moves: Floats
    change: Floats
    sigma: Floats
    sigma_internal: Floats
    sigma_centre: Floats
    """(group, 2) of the centres, in x and y across the beam (mm), less the common shift, the turn about the beam and the scale."""
    sigma_ray: Floats
    """The same of where the rays to the centres meet the groups: what predictions are off by."""
    half_difference: Floats
    half_sigma: Floats
    scale: float
    """Variance of the residuals by the variances given (chi-squared a degree of freedom)."""
    spread: tuple[float, ...]
    """Standard deviations (mm) that the groups' moves are seen to have; empty: they are free."""
    converged: bool


@dataclass(frozen=True)
class MetrologyState:
    """Frozen, picklable, and of the size of the detector."""

    start: Detector
    detector: Detector
    """Where the next pass has the panels."""
    beam: Beam
    levels: tuple[int, ...]
    at: int
    """Place in ``levels``."""
    bounds: Floats
    """(panels + 1) bound of the normalised residual on each panel, and of ΔΨ."""
    reference: Floats
    """The bounds of the pass before."""
    psi_common: float = 0.0
    """Common σ of ΔΨ, radians; 0: not known yet."""
    blend: float = 0.0
    """How reflections off their condition diffract (Å²), of `xfelproc.kernels.metrology_rows.onto_sphere`."""
    spread: Spreads = field(default_factory=dict)
    """How far groups of each level move from the level above (mm): in the plane, along the normal, by turns out of it and in it."""
    origin: Detector | None = None
    """Where the panels were before any refinement, if not at ``start``: the restraint of groups counts from there."""
    level_start: Detector | None = None
    """Where the level's groups would be if they had only followed the level above from the origin."""
    level_entry: Detector | None = None
    """Where the level began."""
    accepted: Detector | None = None
    accepted_loss: float = float("nan")
    step: Floats = field(default_factory=lambda: np.zeros(0))
    """Moves of the level's groups that led from ``accepted`` to ``detector``."""
    restraint: tuple[float, float] = (0.0, 0.0)
    """First and second derivative of the restraint's loss along the whole step."""
    trials: int = 0
    """Steps shortened in a row."""
    passes: int = 0
    """Passes at this level."""
    steps: tuple[Step, ...] = ()
    outcomes: tuple[LevelOutcome, ...] = ()
    before: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    """Statistics of the panels in the first pass, and in the last one."""
    after: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    finished: bool = False
    converged: bool = False
    why: str = ""
    notes: tuple[str, ...] = ()

    @property
    def level(self) -> int:
        """The level being refined."""
        return self.levels[min(self.at, len(self.levels) - 1)]

    @property
    def finest(self) -> int:
        """The level whose groups are accumulated: those of all coarser levels follow from them."""
        return self.levels[-1]

    @property
    def iteration(self) -> int:
        """Passes made."""
        return len(self.steps)

    @property
    def usable(self) -> bool:
        """Whether it came to the end of all levels, settled or not: the detector is better than the one that went in."""
        return self.converged or (self.finished and len(self.outcomes) == len(self.levels))

    @property
    def significance(self) -> float:
        """Root mean square over all free moves of change by standard deviation: about 1 if the detector was right already."""
        parts = [(level.change / np.where(level.sigma > 0, level.sigma, np.inf))[~level.tied].ravel() for level in self.outcomes]
        moves = np.concatenate(parts) if parts else np.zeros(0)
        moves = moves[moves != 0.0]
        return float(np.sqrt(np.mean(moves**2))) if len(moves) else 0.0

    @property
    def fingerprint(self) -> str:
        """Hash of all that a pass depends on."""
        parts = [self.detector.d_matrices, self.detector.pixel_sizes, self.detector.sensors, self.bounds, self.reference]
        digest = hashlib.sha256(repr((self.levels, self.psi_common, self.blend, self.beam.direction)).encode())
        for part in parts:
            digest.update(np.ascontiguousarray(part).tobytes())
        digest.update(repr(self.detector.hierarchy).encode())
        return digest.hexdigest()
