"""What the user may say about the input, beside and above what the files say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from xfelproc.models.parameters import Parameters


class SourceSettings(Parameters):
    """Overrides for reading frames; what is None is taken from the files."""

    geometry: Annotated[
        Path | None, Field(description="geometry to use instead of the header's: a CrystFEL .geom, a DIALS .expt, or a NeXus file")
    ] = None
    distance: Annotated[float | None, Field(gt=0, description="distance from sample to detector along the beam, mm")] = None
    beam_center: Annotated[
        tuple[float, float] | None, Field(description="beam centre (fast, slow) in pixels of the first panel's grid")
    ] = None
    wavelength: Annotated[float | None, Field(gt=0, lt=100, description="wavelength of every frame, Å")] = None
    bandwidth: Annotated[float | None, Field(ge=0, lt=0.5, description="relative FWHM of the spectrum")] = None
    mask: Annotated[
        str | None, Field(description="mask file: .npy, .h5:/path, or an image; non-zero is bad unless mask_good says otherwise")
    ] = None
    mask_good: Annotated[
        int | None, Field(description="value that good pixels have in the mask file; None: 0 is good, all else is bad")
    ] = None
    trusted_range: Annotated[
        tuple[float, float] | None, Field(description="lowest and highest raw value that is a measurement")
    ] = None
    polarization_fraction: Annotated[
        float | None, Field(ge=0, le=1, description="fraction of the beam polarised in the plane normal to polarization_normal")
    ] = None
    polarization_normal: Annotated[
        tuple[float, float, float] | None, Field(description="normal of the plane of polarisation, laboratory frame")
    ] = None
    sensor_material: Annotated[
        Literal["Si", "CdTe", "GaAs"] | None, Field(description="material of the sensor, for the parallax")
    ] = None
    sensor_thickness: Annotated[float | None, Field(ge=0, description="thickness of the sensor, mm; 0: no parallax")] = None
    adu_per_photon: Annotated[float | None, Field(gt=0, description="raw units a photon, uniform over the detector")] = None
    gain_data: Annotated[
        str | None,
        Field(description="HDF5 path of a separate array that tells the gain stage of each pixel, laid out as the frames"),
    ] = None
    data_path: Annotated[str | None, Field(description="HDF5 path of the frames, where the file does not say")] = None
