"""What is simulated: crystal, beam, detector, sample, and the named presets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import gemmi
from pydantic import Field, field_validator, model_validator

from xfelproc.errors import ConfigError
from xfelproc.models.parameters import Parameters
from xfelproc.simulation.raw_settings import CSPAD, JUNGFRAU, RawSettings


class CrystalSettings(Parameters):
    """The crystals: their lattice, intensities and disorder."""

    cell: Annotated[
        tuple[float, float, float, float, float, float], Field(description="a b c α β γ of the mean crystal, Å and degrees")
    ] = (79.1, 79.1, 38.0, 90.0, 90.0, 90.0)
    space_group: Annotated[str, Field(description="Hermann-Mauguin symbol")] = "P 43 21 2"
    d_min: Annotated[float, Field(gt=0.5, description="no photons beyond this resolution, Å")] = 2.2
    b_factor: Annotated[float, Field(ge=0, description="B of the random intensities, Å²")] = 20.0
    reflections: Annotated[
        Path | None, Field(description="MTZ whose intensities are used instead of random ones (columns IMEAN, I, FP or F)")
    ] = None
    domain_size: Annotated[
        tuple[float, float], Field(description="range of the mean size of a crystal's mosaic blocks, Å (Scherrer's, K = 0.94)")
    ] = (900.0, 1500.0)
    mosaicity: Annotated[
        float, Field(ge=0, lt=5, description="standard deviation of the blocks' rotation about each axis, degrees")
    ] = 0.03
    cell_spread: Annotated[float, Field(ge=0, lt=0.1, description="relative standard deviation of cell lengths over crystals")] = (
        0.001
    )
    samples: Annotated[int, Field(ge=1, le=1000, description="blocks a crystal, each with a wavelength of the spectrum")] = 40

    @field_validator("space_group")
    @classmethod
    def _known(cls, value: str) -> str:
        if gemmi.find_spacegroup_by_name(value) is None:
            raise ValueError(f"no space group is called {value!r}; write a Hermann-Mauguin symbol such as 'P 43 21 2'")
        return value

    @model_validator(mode="after")
    def _possible(self) -> CrystalSettings:
        if not 50.0 <= self.domain_size[0] <= self.domain_size[1]:
            raise ValueError(f"domain_size = {self.domain_size}: give the smaller size first, at least 50 Å")
        if not gemmi.UnitCell(*self.cell).is_compatible_with_spacegroup(gemmi.SpaceGroup(self.space_group)):
            raise ValueError(f"the cell {self.cell} does not have the symmetry of {self.space_group}")
        return self


class BeamSettings(Parameters):
    """The beam."""

    wavelength: Annotated[float, Field(gt=0.1, lt=10, description="mean wavelength, Å")] = 1.305
    bandwidth: Annotated[float, Field(ge=0, lt=0.1, description="relative FWHM of the Gaussian spectrum of a shot")] = 0.002
    jitter: Annotated[
        float, Field(ge=0, lt=0.05, description="relative standard deviation of a shot's mean wavelength, recorded shot by shot")
    ] = 0.001
    polarization: Annotated[float, Field(ge=0, le=1, description="share of the beam with its electric field horizontal")] = 0.99


class DetectorSettings(Parameters):
    """The detector and how it is recorded."""

    layout: Annotated[
        Literal["single", "tiles", "cspad", "jungfrau"],
        Field(
            description="one panel; 2 x 4 slightly misplaced tiles; 64 ASICs of 194 x 185 pixels in four quadrants; 8 modules in"
            " four quadrants"
        ),
    ] = "single"
    size: Annotated[
        tuple[int, int], Field(description="pixels (fast, slow) of the panel, or of each tile or module; cspad: not used")
    ] = (1000, 1000)
    pixel_size: Annotated[float, Field(gt=0.001, lt=5, description="edge of a pixel, mm")] = 0.15
    distance: Annotated[float, Field(gt=1, description="distance from crystal to detector, mm")] = 120.0
    beam_offset: Annotated[
        tuple[float, float], Field(description="where the beam meets the detector, less its middle, in pixels (fast, slow)")
    ] = (3.2, -1.7)
    point_spread: Annotated[float, Field(ge=0, lt=10, description="standard deviation of the point spread, pixels")] = 0.5
    saturation: Annotated[int, Field(ge=10, le=65534, description="largest count of a pixel")] = 60000
    dead: Annotated[float, Field(ge=0, lt=0.5, description="fraction of pixels that are dead")] = 0.0005
    oversample: Annotated[int, Field(ge=1, le=10, description="points a pixel and direction at which nodes are summed")] = 3

    @model_validator(mode="after")
    def _possible(self) -> DetectorSettings:
        if min(self.size) < 16 or max(self.size) > 20000:
            raise ValueError(f"size = {self.size}: a panel has 16 to 20000 pixels in each direction")
        return self


class Displacement(Parameters):
    """How far the recorded places of a level's parts are from the true ones: the root mean square over the parts of each number."""

    in_plane: Annotated[float, Field(ge=0, lt=100, description="along fast and along slow each, pixels")] = 0.0
    out_of_plane: Annotated[float, Field(ge=0, lt=100, description="along the normal, pixels")] = 0.0
    rotation: Annotated[float, Field(ge=0, lt=10, description="about the normal through the part's middle, degrees")] = 0.0
    tilt: Annotated[float, Field(ge=0, lt=10, description="about fast and about slow each, degrees")] = 0.0


class GeometryErrorSettings(Parameters):
    """What is wrong with the recorded geometry; the true one is the layout's."""

    quadrants: Annotated[Displacement, Field(description="parts of the first level below the detector")] = Displacement()
    sensors: Annotated[Displacement, Field(description="parts of the second level")] = Displacement()
    panels: Annotated[Displacement, Field(description="each panel by itself")] = Displacement()
    centre: Annotated[
        tuple[float, float], Field(description="of the whole detector, to the right and down as seen along the beam, pixels")
    ] = (0.0, 0.0)
    distance: Annotated[float, Field(gt=-500, lt=500, description="recorded distance less the true one, mm")] = 0.0


class SimulationSettings(Parameters):
    """A simulated experiment; every number but the seed is a property of the thing simulated."""

    frames: Annotated[int, Field(ge=1, le=1_000_000, description="frames")] = 150
    seed: Annotated[int, Field(ge=0, description="frame i depends on the seed, i and the settings alone")] = 1
    hit_fraction: Annotated[float, Field(ge=0, le=1, description="probability that a frame has crystals")] = 0.8
    lattices: Annotated[int, Field(ge=1, le=10, description="crystals in a hit")] = 1
    photons: Annotated[
        float, Field(gt=0, description="photons of a fully recorded reflection of mean intensity at low resolution, mean shot")
    ] = 4000.0
    scale_spread: Annotated[float, Field(ge=0, lt=3, description="standard deviation of log(scale) over crystals")] = 0.5
    background: Annotated[float, Field(ge=0, description="photons a pixel on the water ring")] = 4.0
    background_spread: Annotated[float, Field(ge=0, lt=2, description="standard deviation of log(background) over frames")] = 0.2
    ice: Annotated[float, Field(ge=0, description="photons a pixel on the strongest ice ring")] = 0.0
    ice_spots: Annotated[float, Field(ge=0, description="mean number of spots that ice crystallites add to the rings")] = 0.0
    false_peaks: Annotated[
        float, Field(ge=0, description="spots that belong to no lattice, as a fraction of the strong spots of the frame")
    ] = 0.0
    cell_error: Annotated[float, Field(gt=-0.5, lt=0.5, description="relative error of the cell lengths that the job is given")] = (
        0.0
    )
    centre_error: Annotated[
        float, Field(ge=0, description="error of the recorded beam centre, in mean spot spacings λ distance / V^(1/3)")
    ] = 0.0
    give_cell: Annotated[bool, Field(description="name cell and space group in the job file")] = True
    crystal: CrystalSettings = CrystalSettings()
    beam: BeamSettings = BeamSettings()
    detector: DetectorSettings = DetectorSettings()
    geometry_error: GeometryErrorSettings = GeometryErrorSettings()
    raw: Annotated[
        RawSettings | None, Field(description="what the electronics make of the photons; None: frames are photons already")
    ] = None


_CSPAD = {"layout": "cspad", "pixel_size": 0.11, "distance": 110.0}
_JUNGFRAU = {"layout": "jungfrau", "size": (1024, 512), "pixel_size": 0.075, "distance": 90.0, "beam_offset": (0.0, 0.0)}
_LARGE = {"size": (2000, 2000), "pixel_size": 0.075, "distance": 92.5}

PRESETS: dict[str, dict[str, Any]] = {
    "demo": {},
    "single": {"hit_fraction": 1.0, "frames": 50},
    "weak": {"hit_fraction": 1.0, "photons": 130.0, "scale_spread": 0.4, "frames": 100},
    "two_lattices": {"hit_fraction": 1.0, "lattices": 2, "photons": 1500.0, "frames": 50},
    "three_lattices": {"hit_fraction": 1.0, "lattices": 3, "photons": 1500.0, "frames": 50},
    "ice": {"hit_fraction": 1.0, "ice": 25.0, "ice_spots": 12.0, "frames": 50},
    "false_peaks": {"hit_fraction": 1.0, "false_peaks": 0.05, "frames": 50},
    "cell_off": {"hit_fraction": 1.0, "cell_error": 0.01, "frames": 50},
    "centre_off": {"hit_fraction": 1.0, "centre_error": 0.25, "frames": 50},
    "no_cell": {"hit_fraction": 1.0, "give_cell": False, "frames": 50},
    "blank": {"hit_fraction": 0.0, "frames": 20},
    "tiles": {"hit_fraction": 1.0, "detector": {"layout": "tiles", "size": (480, 230)}, "frames": 20},
    "cspad": {"hit_fraction": 1.0, "detector": _CSPAD, "frames": 20},
    "metrology": {
        "hit_fraction": 1.0,
        "frames": 300,
        "photons": 1100.0,
        "detector": {**_CSPAD, "distance": 190.0},
        "geometry_error": {
            "panels": {"in_plane": 0.8, "out_of_plane": 0.5, "rotation": 0.1, "tilt": 0.1},
            "centre": (0.9, -0.6),
            "distance": 0.3,
        },
    },
    "metrology_far": {
        "hit_fraction": 1.0,
        "frames": 120,
        "photons": 200.0,
        "detector": {**_CSPAD, "distance": 150.0},
        "geometry_error": {
            "panels": {"in_plane": 4.0, "out_of_plane": 0.5, "rotation": 0.1, "tilt": 0.1},
            "centre": (0.9, -0.6),
            "distance": 0.3,
        },
    },
    "raw_cspad": {"detector": _CSPAD, "frames": 20, "raw": CSPAD},
    "raw_jungfrau": {"detector": _JUNGFRAU, "frames": 20, "raw": JUNGFRAU},
    "large": {"detector": _LARGE, "crystal": {"d_min": 1.8}, "frames": 60},
}
"""What each named experiment changes of the defaults; the figures that accuracy is judged by are measured on these."""


def preset(name: str, **changes: Any) -> SimulationSettings:
    """Return a preset's settings, with some of the top-level ones exchanged.

    Raises
    ------
    ConfigError
        If there is no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"no preset is called {name!r}; there are {', '.join(PRESETS)}")
    return SimulationSettings(**{**PRESETS[name], **changes})
