from __future__ import annotations

import pytest

from xfelproc.errors import ConfigError
from xfelproc.io.sources.attenuation import attenuation, material_of
from xfelproc.io.sources.overrides import override_sensor
from xfelproc.io.sources.settings import SourceSettings
from xfelproc.models.conventions import wavelength_of
from xfelproc.models.experiment import Beam, Detector, Panel


@pytest.mark.parametrize(
    ("wavelength", "mu"), [(0.6889, 1.415352), (0.96857, 3.832383), (1.27250528, 8.515708), (1.385298, 10.888564)]
)
def test_silicon_agrees_with_dials(wavelength: float, mu: float) -> None:
    assert attenuation("Si", wavelength) == pytest.approx(mu, rel=3e-3)


@pytest.mark.parametrize(
    ("material", "energy", "per_cm"),
    [
        # mass attenuation (cm²/g) of the NIST tables times density
        ("Si", 6000, 147.0 * 2.33),
        ("Si", 10000, 33.89 * 2.33),
        ("Si", 20000, 4.464 * 2.33),
        ("Si", 40000, 0.7012 * 2.33),
        ("Si", 80000, 0.2228 * 2.33),
    ],
)
def test_agrees_with_nist(material: str, energy: float, per_cm: float) -> None:
    assert attenuation(material, wavelength_of(energy)) == pytest.approx(per_cm / 10, rel=0.01)


@pytest.mark.parametrize(("material", "edge"), [("CdTe", 26711), ("CdTe", 31814), ("GaAs", 10367), ("GaAs", 11867)])
def test_edges_step_up(material: str, edge: float) -> None:
    assert attenuation(material, wavelength_of(edge * 1.001)) > 1.3 * attenuation(material, wavelength_of(edge * 0.999))


@pytest.mark.parametrize(("material", "join"), [("Si", 8000), ("Si", 30000), ("GaAs", 40000)])
def test_pieces_meet_elsewhere(material: str, join: float) -> None:
    assert attenuation(material, wavelength_of(join * 1.0001)) == pytest.approx(
        attenuation(material, wavelength_of(join * 0.9999)), rel=0.008
    )


def test_unknown_is_none() -> None:
    assert attenuation("", 1.0) == 0.0
    assert attenuation("Si", 0.0) == 0.0
    assert attenuation("Si", 0.0251) == 0.0
    assert [material_of(t) for t in (" Silicon", "CdTe", "GaAs", "glass")] == ["Si", "CdTe", "GaAs", ""]


def test_settings_give_the_sensor() -> None:
    panel = Panel("p", (1, 0, 0), (0, -1, 0), (0, 0, -100), (0.1, 0.1), (10, 10))
    detector = Detector((panel,))
    done = override_sensor(detector, Beam(1.0), SourceSettings(sensor_material="CdTe", sensor_thickness=1.0)).panels[0]
    assert (done.material, done.thickness, done.mu) == ("CdTe", 1.0, attenuation("CdTe", 1.0))
    with pytest.raises(ConfigError, match="sensor_material"):
        override_sensor(detector, Beam(1.0), SourceSettings(sensor_thickness=1.0))
    assert override_sensor(detector, Beam(1.0), SourceSettings()) is detector
