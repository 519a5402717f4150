"""Why frames failed, in words."""

from __future__ import annotations

import re

LEFT_OUT = "twice at this frame: left out"
"""How the reason of a frame ends at which workers died."""
_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?")


def general_reason(reason: str) -> str:
    """Return the reason with its numbers taken out, so that equal causes are counted together."""
    return _NUMBER.sub("…", reason)
