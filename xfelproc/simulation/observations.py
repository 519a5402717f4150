"""Integrated observations with known truth, without frames: as many as a test of merging wants.

Stills of crystals in random orientations are predicted, their reflections drawn by Wilson's law, and counted with the errors that
`ObservationSettings` plants. Nothing here is shared with prediction, scaling or merging. Lattice i depends on the seed, i and the
settings alone, so that any stretch of lattices can be made anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Self

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from xfelproc.kernels.simulation_observations import excitation_errors, observe_still, predict_still
from xfelproc.models.conventions import ReflectionFlag
from xfelproc.models.tables import ReflectionTable
from xfelproc.simulation.crystal import reciprocal_basis
from xfelproc.simulation.observation_settings import ObservationSettings

Floats = NDArray[np.float64]
CAPACITY = 1 << 17
PIXELS_A_REFLECTION = 30


@dataclass(frozen=True)
class Structure:
    """Truth about the unique reflections ``hkl`` (n, 3) in gemmi's order: those of the asymmetric unit without absences.

    ``intensity`` (2, 2, n) is by group (pump off, on) and Friedel sign (plus, minus). The lookup tables ``number`` (-1: none)
    and ``isym`` (gemmi's: 2 m + 1 where operator m takes hkl to the asymmetric unit, 2 m + 2 where to the mate) are at
    [h + reach, k + reach, l + reach].
    """

    hkl: NDArray[np.int32]
    d: Floats
    centric: NDArray[np.bool_]
    intensity: Floats
    number: NDArray[np.int32]
    isym: NDArray[np.int16]

    @property
    def reach(self) -> NDArray[np.int32]:
        """Largest index in the tables."""
        return (np.array(self.number.shape, dtype=np.int32) - 1) // 2

    @property
    def mean(self) -> Floats:
        """Mean of both mates without pump, (n,)."""
        mean: Floats = self.intensity[0].mean(axis=0)
        return mean


@dataclass(frozen=True)
class Crystals:
    """Lattices, (n, ...): first what is stated of them, then the truth."""

    A: Floats
    wavelength: Floats
    half: NDArray[np.uint8]
    group: NDArray[np.int16]
    true_A: Floats
    true_wavelength: Floats
    scale: Floats
    b_factor: Floats
    width: Floats
    mosaicity: Floats
    background: Floats
    outlier: NDArray[np.bool_]
    setting: NDArray[np.int16]
    """Row of ``settings`` under which hkl and A are stated; -1 where there are none."""

    def __len__(self) -> int:
        return len(self.half)


@dataclass(frozen=True)
class SimulatedObservations:
    """Observations sorted by lattice, lattice i of the rows ``starts[i]:starts[i + 1]``; true columns are at the end.

    ``intensity`` is in photons, not corrected for ``polarization``; ``sigma`` is stated from the counts. ``number`` is the row
    of `Structure` that the stated index belongs to. ``expected`` is the intensity without noise and errors.
    """

    structure: Structure
    crystals: Crystals
    first: int
    sigma_factor: float
    starts: NDArray[np.int64]
    hkl: NDArray[np.int16]
    number: NDArray[np.int32]
    isym: NDArray[np.int16]
    intensity: NDArray[np.float32]
    sigma: NDArray[np.float32]
    d: NDArray[np.float32]
    excitation: NDArray[np.float32]
    polarization: NDArray[np.float32]
    fast: NDArray[np.float32]
    slow: NDArray[np.float32]
    expected: NDArray[np.float32]
    partiality: NDArray[np.float32]
    outlier: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.number)

    @property
    def lattice(self) -> NDArray[np.int64]:
        """(n,) lattice of each row, from 0."""
        return np.repeat(np.arange(len(self.crystals)), np.diff(self.starts))

    def table(self) -> ReflectionTable:
        """Return what integration would have written; its ``partiality`` is 1, as nobody knows the true one."""
        n = len(self)
        background = np.repeat(self.crystals.background, np.diff(self.starts)) / PIXELS_A_REFLECTION
        return ReflectionTable(
            n,
            lattice=self.lattice,
            hkl=self.hkl,
            **{name: getattr(self, name) for name in ("intensity", "sigma", "d", "excitation", "polarization", "fast", "slow")},
            background=background,
            n_pixels=np.full(n, PIXELS_A_REFLECTION),
            partiality=np.ones(n),
            delta_psi=np.degrees(self.excitation * self.d),
            flags=np.full(n, int(ReflectionFlag.INTEGRATED)),
        )

    def block(self) -> dict[str, NDArray[Any]]:
        """Return the columns of a block of lattices: corrected intensities, variance = fixed + gain · expected intensity."""
        p, factor = self.polarization, self.sigma_factor**2
        fixed = self.sigma.astype(np.float64) ** 2 - factor * np.maximum(self.intensity, 0.0)
        return {
            "starts": self.starts,
            "group": self.number,
            "isym": self.isym,
            "hkl": self.hkl,
            "intensity": self.intensity / p,
            "variance_fixed": (np.maximum(fixed, 0.0) / p**2).astype(np.float32),
            "variance_gain": (factor / p).astype(np.float32),
            "panel": np.zeros(len(self), dtype=np.int16),
            "fast": self.fast,
            "slow": self.slow,
            "flags": np.full(len(self), int(ReflectionFlag.INTEGRATED), dtype=np.uint16),
            "polarization": p,
            "excitation": self.excitation,
            "d": self.d,
            "A": self.crystals.A,
            "wavelength": self.crystals.wavelength,
            "half": self.crystals.half,
            "lattice_group": self.crystals.group,
        }


class ObservationSimulator:
    """Makes observations; ``structure`` is made at the first use."""

    def __init__(self, settings: ObservationSettings) -> None:
        self.settings = settings
        self._space_group = gemmi.SpaceGroup(settings.space_group)
        self._basis = reciprocal_basis(settings.cell)
        self._buffer = np.empty((CAPACITY, 3), dtype=np.int32)

    @cached_property
    def structure(self) -> Structure:
        """The true intensities."""
        s, group = self.settings, self._space_group
        cell, operations = gemmi.UnitCell(*s.cell), group.operations()
        # a little more than is asked for: cells vary
        hkl = np.array(gemmi.make_miller_array(cell, group, s.d_min * (1 - 3 * s.cell_spread), 0.0), dtype=np.int32)
        hkl = hkl[np.any(hkl != 0, axis=1)]
        q2 = np.sum((hkl @ self._basis.T) ** 2, axis=1)
        centric = np.asarray(operations.centric_flag_array(hkl), dtype=bool).reshape(-1)
        epsilon = np.asarray(operations.epsilon_factor_without_centering_array(hkl), dtype=np.float64).reshape(-1)
        rng = np.random.default_rng([s.seed, 11])
        n = len(hkl)
        variate = np.where(centric, rng.standard_normal(n) ** 2, rng.exponential(size=n))
        typical = epsilon * np.exp(-0.5 * s.b_factor * q2)
        amplitude = np.sqrt(typical * variate)
        # <F> = √(π/4 Σ) of an acentric reflection, <|x|> = √(2/π) of a normal one
        difference = s.anomalous * np.sqrt(np.pi / 4 * typical) * np.sqrt(np.pi / 2) * rng.standard_normal(n) * ~centric
        off = np.stack([(amplitude + 0.5 * difference) ** 2, (amplitude - 0.5 * difference) ** 2])
        on = off * np.maximum(1.0 + s.pump_change * rng.standard_normal(n), 0.0)
        number, isym = _tables(hkl, operations)
        return Structure(hkl, 1.0 / np.sqrt(q2), centric, np.stack([off, on]), number, isym)

    def crystals(self, first: int, last: int) -> Crystals:
        """Return the lattices ``first`` to ``last`` (without it)."""
        drawn = [self._crystal(i) for i in range(first, last)]
        arrays = {f.name: np.array([crystal[f.name] for crystal in drawn]) for f in fields(Crystals)}
        dtypes = {"half": np.uint8, "group": np.int16, "setting": np.int16, "outlier": np.bool_}
        return Crystals(**{name: values.astype(dtypes.get(name, np.float64)) for name, values in arrays.items()})

    def simulate(self, first: int, last: int) -> SimulatedObservations:
        """Return the observations of the lattices ``first`` to ``last`` (without it)."""
        crystals = self.crystals(first, last)
        parts = [self._observe(crystals, i, first + i) for i in range(len(crystals))]
        starts = np.cumsum([0] + [len(part["number"]) for part in parts])
        names = parts[0].keys() if parts else ()
        columns = {name: np.concatenate([part[name] for part in parts]) for name in names}
        return SimulatedObservations(self.structure, crystals, first, self.settings.sigma_factor, starts, **columns)

    def _crystal(self, i: int) -> dict[str, Any]:
        s = self.settings
        rng = np.random.default_rng([s.seed, 12, i])
        normal = rng.standard_normal(14)
        uniform = rng.random(4)
        orientation = Rotation.from_quat(rng.standard_normal(4)).as_matrix()
        misset = Rotation.from_rotvec(np.radians(s.misset) * normal[:3]).as_matrix()
        own = self._own_basis(normal[3:6])
        true = orientation @ own
        stated = misset @ orientation @ (own if s.cell_known else self._basis)
        setting = int(uniform[0] * len(s.settings)) if s.settings else -1
        if setting >= 0:
            stated = stated @ np.linalg.inv(self._operators[setting].T)
        wavelength = s.wavelength * (1.0 + s.wavelength_jitter * normal[6])
        return {
            "A": stated,
            "wavelength": wavelength * (1.0 + s.wavelength_error * normal[7]),
            "half": uniform[1] < 0.5,
            "group": uniform[2] < s.pump_fraction,
            "true_A": true,
            "true_wavelength": wavelength,
            "scale": s.photons * np.exp(s.scale_spread * normal[8]),
            "b_factor": s.b_spread * normal[9],
            "width": s.width * np.exp(s.width_spread * normal[10]),
            "mosaicity": s.mosaicity * np.exp(s.mosaicity_spread * normal[11]),
            "background": s.background * np.exp(s.background_spread * normal[12]),
            "outlier": uniform[3] < s.outlier_lattices,
            "setting": setting,
        }

    @cached_property
    def _operators(self) -> list[NDArray[np.int64]]:
        """Rotations R with stated index = true index (a row) · R."""
        return [np.array(gemmi.Op(name).rot, dtype=np.int64) // gemmi.Op.DEN for name in self.settings.settings]

    def _own_basis(self, normal: Floats) -> Floats:
        """Return a*, b*, c* of a crystal: lengths that are equal stay so."""
        s = self.settings
        lengths = np.array(s.cell[:3])
        same = [int(np.flatnonzero(np.isclose(lengths, length))[0]) for length in lengths]
        return reciprocal_basis((*(lengths * (1.0 + s.cell_spread * normal[same])).tolist(), *s.cell[3:]))

    def _observe(self, crystals: Crystals, row: int, i: int) -> dict[str, NDArray[Any]]:
        """Return the columns of one lattice."""
        s, structure = self.settings, self.structure
        width = s.reach * np.array([s.width, s.mosaicity, 0.5 * s.bandwidth * s.wavelength])
        limits = np.array([1.0 / s.d_max, 1.0 / s.d_min])
        A, wavelength = crystals.A[row], float(crystals.wavelength[row])
        n = predict_still(A, wavelength, limits, width, structure.reach, structure.number, self._buffer)
        if n > CAPACITY:
            raise ValueError(f"a still predicts {n} reflections, more than {CAPACITY}: give a smaller cell or a larger d_min")
        hkl = self._buffer[:n]
        stated, q = np.empty(n), np.empty((n, 3))
        excitation_errors(A, wavelength, hkl, stated, q)
        q2 = np.einsum("ij,ij->i", q, q)
        direction = (q - [0.0, 0.0, 1.0 / wavelength]) / (1.0 / wavelength + stated)[:, None]
        x2, y2 = direction[:, 0] ** 2, direction[:, 1] ** 2
        polarization = s.polarization * (1.0 - x2) + (1.0 - s.polarization) * (1.0 - y2)
        number, isym = _look_up(structure, hkl)
        measured = self._measure(crystals, row, i, hkl, polarization)
        with np.errstate(divide="ignore", invalid="ignore"):
            pixels = 10.0 * s.distance * direction[:, :2] / -direction[:, 2:]
        background = crystals.background[row]
        return {
            "hkl": hkl.astype(np.int16),
            "number": number,
            "isym": isym,
            "intensity": measured[:, 0].astype(np.float32),
            "sigma": (s.sigma_factor * np.sqrt(np.maximum(measured[:, 0] + background, 1.0))).astype(np.float32),
            "d": (1.0 / np.sqrt(q2)).astype(np.float32),
            "excitation": stated.astype(np.float32),
            "polarization": polarization.astype(np.float32),
            "fast": (1000.0 + pixels[:, 0]).astype(np.float32),
            "slow": (1000.0 - pixels[:, 1]).astype(np.float32),
            "expected": measured[:, 1].astype(np.float32),
            "partiality": measured[:, 2].astype(np.float32),
            "outlier": measured[:, 3] > 0,
        }

    def _measure(self, crystals: Crystals, row: int, i: int, hkl: NDArray[np.int32], polarization: Floats) -> Floats:
        """Return (n, 4) of `observe_still` for the stated indices of lattice ``i``, in this row of ``crystals``."""
        s, structure = self.settings, self.structure
        if crystals.setting[row] >= 0:
            hkl = np.rint(hkl @ np.linalg.inv(self._operators[crystals.setting[row]])).astype(np.int32)
        excitation, q = np.empty(len(hkl)), np.empty((len(hkl), 3))
        excitation_errors(crystals.true_A[row], float(crystals.true_wavelength[row]), hkl, excitation, q)
        number, isym = _look_up(structure, hkl)
        minus = np.where(structure.centric[number], 0, (isym + 1) % 2)
        full = structure.intensity[crystals.group[row], minus, number] * (number >= 0)
        rng = np.random.default_rng([s.seed, 13, i])
        if crystals.outlier[row]:
            full, excitation = rng.permutation(full), rng.permutation(excitation)
        crystal = np.array(
            [
                crystals.scale[row],
                crystals.b_factor[row],
                crystals.width[row],
                crystals.mosaicity[row],
                0.5 * s.bandwidth * s.wavelength,
                s.lorentzian,
                float(s.keep_area),
            ]
        )
        noise = np.array([crystals.background[row], s.error_intensity, s.error_partiality, s.outlier_observations, s.outlier_size])
        out = np.empty((len(hkl), 4))
        observe_still(rng, excitation, np.einsum("ij,ij->i", q, q), full, polarization, crystal, noise, out)
        return out

    @classmethod
    def of(cls, **settings: Any) -> Self:
        """Return a simulator of `ObservationSettings` with these changed."""
        return cls(ObservationSettings(**settings))


def _look_up(structure: Structure, hkl: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int16]]:
    """Return the number of the unique reflection (-1: none) and isym of each index."""
    shifted = hkl + structure.reach
    inside = np.all((shifted >= 0) & (shifted < structure.number.shape), axis=1)
    place = tuple(np.where(inside[:, None], shifted, 0).T)
    return np.where(inside, structure.number[place], -1).astype(np.int32), structure.isym[place]


def _tables(hkl: NDArray[np.int32], operations: gemmi.GroupOps) -> tuple[NDArray[np.int32], NDArray[np.int16]]:
    """Return the tables ``number`` and ``isym`` of `Structure`."""
    rotations = [np.array(op.rot, dtype=np.int64) // gemmi.Op.DEN for op in operations.sym_ops]
    mates = [np.rint(hkl @ np.linalg.inv(rotation)).astype(np.int64) for rotation in rotations]
    reach = np.max([np.abs(mate).max(axis=0) for mate in mates], axis=0)
    number = np.full(tuple(2 * reach + 1), -1, dtype=np.int32)
    isym = np.zeros(number.shape, dtype=np.int16)
    # the first operator that leads to the asymmetric unit counts, and it before its mate: so the last to write
    for m in reversed(range(len(mates))):
        for sign in (-1, 1):
            place = tuple((sign * mates[m] + reach).T)
            number[place] = np.arange(len(hkl))
            isym[place] = 2 * m + (1 if sign > 0 else 2)
    return number, isym
