"""How far a fitted cost model is from the measurements that it never saw."""

from __future__ import annotations

from pydantic import Field

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

    def summary(self) -> str:
        """One line for people: the mean absolute error of each regime."""
        parts = {"decode": self.decode, "prefill": self.prefill, "mixed": self.mixed}
        shares = ", ".join(f"{regime} {100 * figures.mape:.1f} %" for regime, figures in parts.items())
        return f"{shares} (held out)"
