"""Frames with known truth, by a path of their own: nothing here uses the package's geometry, prediction or integration."""

from xfelproc.simulation.experiment import SimulatedRun, simulate
from xfelproc.simulation.scene import Shot, Simulator
from xfelproc.simulation.settings import PRESETS, SimulationSettings, preset

__all__ = ["PRESETS", "Shot", "SimulatedRun", "SimulationSettings", "Simulator", "preset", "simulate"]
