"""Models that all combined lattices share: found, compared, averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xfelproc.errors import ConfigError
from xfelproc.io.exchange import load_geometry
from xfelproc.io.nodes import Partial, read_node
from xfelproc.models.experiment import Beam, Detector, as_vector
from xfelproc.stages.combine import ChosenLattices, unpickled_detectors
from xfelproc.stages.combine_models import average_detector, beam_difference, beam_of, detector_difference
from xfelproc.stages.combine_settings import Combine

LOOSE = {"axis_tolerance": 1e9, "origin_tolerance": 1e9}
_ADVICE = "Raise the tolerance, set combine.compare = false, or let combine.{model} = 'each'"


@dataclass(frozen=True)
class SharedModels:
    """Finds the models that all lattices share."""

    settings: Combine
    lattices: ChosenLattices
    nodes: Sequence[Path]
    offsets: tuple[int, ...]
    block: NDArray[np.int32]

    def find(self) -> tuple[Beam | None, Detector | None]:
        """Return beam and detector; None where each lattice has its own."""
        settings, total, count = self.settings, np.zeros(0), 0
        reference: Partial | None = None
        given = None if settings.reference is None else load_geometry(settings.reference).detector
        weights: dict[Detector, NDArray[np.float64]] = {}
        first: Detector | None = given
        for path, begin in zip(self.nodes, np.searchsorted(self.block, self.offsets[:-1]), strict=True):
            arrays = read_node(path)[1]
            if not len(arrays["beam"]):
                continue
            detectors = unpickled_detectors(arrays)
            if reference is None:
                reference, total = arrays, np.zeros(arrays["beam"].shape[1])
                first = given or detectors[0]
            assert first is not None
            self._check_beams(reference["beam"][0], arrays["beam"], int(begin))
            self._check_detectors(first, detectors, arrays["detector"], int(begin), given is not None)
            total, count = total + arrays["beam"].sum(axis=0), count + len(arrays["beam"])
            for number, detector in enumerate(detectors if settings.detector == "average" else ()):
                moves = arrays["move"][arrays["detector"] == number]
                weights[detector] = weights.get(detector, np.zeros(6)) + np.append(moves.sum(axis=0), len(moves))
        assert reference is not None
        beam = {"each": None, "shared": beam_of(reference["beam"][0]), "average": beam_of(total / count)}[settings.beam]
        if settings.detector == "average":
            moved = [d.moved(as_vector(w[:3] / w[5]), (float(w[3] / w[5]), float(w[4] / w[5]))) for d, w in weights.items()]
            first = average_detector(moved, [float(w[5]) for w in weights.values()], settings.average_level)
        return beam, None if settings.detector == "each" else first

    def _check_beams(self, reference: NDArray[np.float64], beams: NDArray[np.float64], begin: int) -> None:
        unknown = np.flatnonzero(~np.isfinite(beams[:, 0]))
        if len(unknown):
            where = self._where(begin + int(unknown[0]))
            raise ConfigError(f"{where}: the wavelength is not known: DIALS files need it, set input.wavelength")
        if self.settings.beam == "each" or not self.settings.compare:
            return
        wrong = beam_difference(reference, beams, self.settings)
        if wrong is not None:
            row, text = wrong
            raise ConfigError(f"{self._where(begin + row)}: {text}; the first is {self._where(0)}. {_ADVICE.format(model='beam')}")

    def _check_detectors(
        self, first: Detector, detectors: Sequence[Detector], number: NDArray[np.int32], begin: int, loose: bool
    ) -> None:
        if self.settings.detector == "each":
            return
        settings = self.settings.model_copy(update=LOOSE) if loose or not self.settings.compare else self.settings
        for which, detector in enumerate(detectors):
            text = detector_difference(first, detector, settings)
            if text is not None:
                where = self._where(begin + int(np.argmax(number == which)))
                other = str(self.settings.reference) if loose else self._where(0)
                raise ConfigError(f"{where}: {text}; the first is {other}. {_ADVICE.format(model='detector')}")

    def _where(self, number: int) -> str:
        """Return file and frame of a chosen lattice."""
        reader = self.lattices.shards.open(int(self.block[number]))
        (chosen,) = self.lattices.blocks([reader])
        sources, indices, names = self.lattices.paths(chosen)
        frame = int(reader.lattices()["frame"][chosen.rows[number - int(chosen.numbers[0])]])
        return f"{names[int(sources[frame])]} frame {int(indices[frame])}"
