"""Base of every parameter model: frozen, validated, nothing extra."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Parameters(BaseModel):
    """Validated, immutable parameters; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class Algorithm(Parameters):
    """An algorithm is its validated parameters; ``method`` names it in the discriminated union of its family."""


def method_by_name(value: Any) -> Any:
    """Return the table of a method that is given by its bare name; anything else as it is (a pydantic `BeforeValidator`)."""
    return {"method": value} if isinstance(value, str) else value
