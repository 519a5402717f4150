from __future__ import annotations

import numpy as np

from xfelproc.models.conventions import MaskBit, PixelMask, mask_bits


def test_reasons_become_mask_bits() -> None:
    reasons = np.array([0, PixelMask.DEAD, PixelMask.GAP, PixelMask.NO_GAIN | PixelMask.ICE, PixelMask.VIRTUAL], dtype=np.uint32)
    both = MaskBit.CALIBRATION | MaskBit.BAD
    assert mask_bits(reasons).tolist() == [0, MaskBit.CALIBRATION, MaskBit.BAD, both, MaskBit.BAD]
    assert mask_bits(reasons).dtype == np.uint8


def test_bits_of_nxmx() -> None:
    bits = {"GAP": 0, "DEAD": 1, "COLD": 2, "HOT": 3, "NOISY": 4, "CLUSTER": 6, "USER": 8, "VIRTUAL": 31}
    assert {name: PixelMask[name] for name in bits} == {name: 1 << bit for name, bit in bits.items()}
