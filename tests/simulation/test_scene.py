from __future__ import annotations

import numpy as np
import pytest

from xfelproc.errors import ConfigError
from xfelproc.simulation import SimulationSettings, Simulator, preset
from xfelproc.simulation.crystal import SimulatedCrystal, draw_blocks, reciprocal_basis
from xfelproc.simulation.settings import BeamSettings, CrystalSettings, DetectorSettings

SMALL = DetectorSettings(size=(300, 280), pixel_size=0.4, distance=110.0, dead=0.0)


def small(**changes: object) -> SimulationSettings:
    return SimulationSettings(**{"detector": SMALL, "hit_fraction": 1.0, **changes})  # type: ignore[arg-type]


def test_a_frame_depends_on_its_index_alone() -> None:
    one, two = Simulator(small()), Simulator(small())
    one.frame(0)
    a, truth_a = one.frame(3)
    b, truth_b = two.frame(3)
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(truth_a.crystals[0].A, truth_b.crystals[0].A)
    assert not np.array_equal(a, one.frame(4)[0])


def test_photons_are_counted_with_their_means() -> None:
    simulator = Simulator(small())
    mean = np.empty((1, 280, 300), dtype=np.float32)
    for row, value in enumerate((0.05, 1.0, 7.3, 40.0, 900.0, 20000.0, 70000.0)):
        mean[:, 40 * row : 40 * (row + 1)] = value
    counts = simulator.count(mean, np.random.default_rng(5)).astype(float)
    for row, value in enumerate((0.05, 1.0, 7.3, 40.0, 900.0, 20000.0)):
        drawn = counts[:, 40 * row : 40 * (row + 1)]
        assert drawn.mean() == pytest.approx(value, abs=5 * np.sqrt(value / drawn.size))
        assert drawn.var() == pytest.approx(value, rel=5 * np.sqrt((2 + 1 / value) / drawn.size))
    assert np.all(counts[:, 240:] == simulator.settings.detector.saturation)


def test_a_reflection_on_the_sphere_is_where_bragg_says_and_as_strong() -> None:
    """The (0, 0, 10) reflection in the plane x = 0: 2θ = 2 asin(λ/2d), upwards; its photons follow."""
    beam = BeamSettings(bandwidth=0.0, jitter=0.0, wavelength=1.3, polarization=0.0)
    crystal = CrystalSettings(mosaicity=0.0, samples=1, domain_size=(1000.0, 1000.0))
    detector = DetectorSettings(size=(900, 900), pixel_size=0.1, distance=100.0, point_spread=0.0, beam_offset=(0.0, 0.0), dead=0.0)
    simulator = Simulator(small(beam=beam, crystal=crystal, detector=detector))
    table = simulator.intensities.table
    table[:] = 0
    table[tuple(np.array(table.shape) // 2 + [0, 0, 10])] = 2.0
    theta = np.arcsin(1.3 / 2 / 3.8)
    c_star = np.array([0.0, np.cos(theta), np.sin(theta)])  # bisects the reflected and the reversed incident ray
    a_star = np.array([1.0, 0.0, 0.0])
    rotation = np.column_stack([a_star, np.cross(c_star, a_star), c_star])
    matrix = rotation @ reciprocal_basis(crystal.cell)
    truth = SimulatedCrystal(matrix, crystal.cell, 500.0, 1000.0, 0.0)
    image = simulator.bragg([truth], 1.3, np.random.default_rng(0))[0]
    slow, fast = np.indices(image.shape) + 0.5
    assert np.average(fast, weights=image) == pytest.approx(450.0, abs=0.02)
    assert np.average(slow, weights=image) == pytest.approx(450.0 - 1000.0 * np.tan(2 * theta), abs=0.03)
    # the block's size is drawn about 1000 Å, so is its share of photons; it enters as (width of 1000 Å) / width
    share = simulator_share(simulator, truth)
    assert image.sum() == pytest.approx(500.0 * 2.0 * np.cos(2 * theta) ** 2 * share, rel=0.01)


def simulator_share(simulator: Simulator, truth: SimulatedCrystal) -> float:
    return float(draw_blocks(truth, simulator.settings.beam, 1.3, 1, 0.0, np.random.default_rng(0)).weights[0])


def test_blur_keeps_photons_and_widens() -> None:
    simulator = Simulator(small(detector=SMALL.model_copy(update={"point_spread": 1.2})))
    sharp = Simulator(small(detector=SMALL.model_copy(update={"point_spread": 0.0})))
    crystals = list(simulator.frame(0)[1].crystals)
    a = simulator.bragg(crystals, 1.305, np.random.default_rng(2))
    b = sharp.bragg(crystals, 1.305, np.random.default_rng(2))
    assert a.sum() == pytest.approx(b.sum(), rel=0.02)
    assert a.max() < b.max()


@pytest.mark.parametrize("name", ["blank", "two_lattices", "ice", "false_peaks"])
def test_presets(name: str) -> None:
    settings = preset(name, detector=SMALL.model_dump())
    counts, shot = Simulator(settings).frame(0)
    assert len(shot.crystals) == {"blank": 0, "two_lattices": 2}.get(name, 1)
    if name == "ice":
        assert np.median(counts) >= 1
    if name == "false_peaks":
        assert sum(Simulator(settings).frame(i)[1].false_peaks for i in range(5)) > 0


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="no preset is called 'demos'"):
        preset("demos")
    broad = small(crystal=CrystalSettings(mosaicity=1.0))
    with pytest.raises(ConfigError, match="reflections would be"):
        Simulator(broad).frame(0)
    with pytest.raises(ValueError, match="does not have the symmetry"):
        CrystalSettings(cell=(70, 80, 90, 90, 90, 90))
    with pytest.raises(ValueError, match="no space group"):
        CrystalSettings(space_group="P 9")
