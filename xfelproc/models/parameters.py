"""Base of every parameter model: frozen, validated, nothing extra."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Parameters(BaseModel):
    """Validated, immutable parameters; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class Algorithm(Parameters):
    """An algorithm is its validated parameters; ``method`` names it in the discriminated union of its family."""
