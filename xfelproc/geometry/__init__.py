"""Pixel, laboratory and reciprocal space; cells: pure numpy, no state."""
