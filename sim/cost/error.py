"""How far a fitted cost model is from the measurements that it never saw."""

from __future__ import annotations

from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from simbatch.sim.cost.step_time import Strict


class ErrorFigures(Strict):
    """Relative errors as shares of the measured step time; bias: sum predicted / sum measured - 1."""

    num_steps: int = Field(ge=0)
    mape: float = Field(ge=0)
    p95: float = Field(ge=0)
    bias: float


class FitError(Strict):
    """Held-out error per regime; bands by the number of decodes, named `9-32`."""

    design: str = Field(description="which steps were fitted on, and which held out")
    decode: ErrorFigures
    decode_bands: dict[str, ErrorFigures] = Field(default_factory=dict)
    prefill: ErrorFigures
    mixed: ErrorFigures
    noise_floor: dict[str, float] = Field(
        default_factory=dict, description="mean absolute deviation of repeats of one step, by regime"
    )
    forms: dict[str, dict[str, float]] = Field(
        default_factory=dict, description="held-out mean absolute error of every form tried, by regime"
    )

    @model_serializer(mode="wrap")
    def _without_empty(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What was not measured is not written."""
        content: dict[str, Any] = serialise(self)
        return {key: value for key, value in content.items() if value or key not in ("noise_floor", "forms")}

    def summary(self) -> str:
        """One line for people: the mean absolute error of each regime."""
        parts = {"decode": self.decode, "prefill": self.prefill, "mixed": self.mixed}
        shares = ", ".join(f"{name} {100 * part.mape:.1f} %" for name, part in parts.items() if part.num_steps)
        return f"{shares} (held out)"
