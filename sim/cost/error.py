"""How far a fitted cost model is from the measurements that it never saw."""

from __future__ import annotations

from typing import Any, Literal

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
    against: Literal["steps", "tables"] = Field(
        default="steps", description="measured steps, or steps composed of measured operations or kernels"
    )
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
        """One line for people: the mean absolute error of each regime, and of what."""
        parts = {"decode": self.decode, "prefill": self.prefill, "mixed": self.mixed}
        shares = ", ".join(f"{name} {100 * part.mape:.1f} %" for name, part in parts.items() if part.num_steps)
        return f"{shares} ({'held out' if self.against == 'steps' else 'fit to composed tables'})"


class RealRuns(Strict):
    """Whole runs on a real server beside their simulation: relative errors of means, lowest and highest."""

    runs: str = Field(description="which runs, and where they are told")
    mean_ttft: tuple[float, float] = Field(strict=False)
    mean_tpot: tuple[float, float] = Field(strict=False)

    def summary(self) -> str:
        """One line for people."""
        return f"real runs: mean TTFT {span(self.mean_ttft)}, mean TPOT {span(self.mean_tpot)} ({self.runs})"


def span(errors: tuple[float, float]) -> str:
    """`-50 to -37 %`; one figure where both are the same, small ones with a digit more."""
    shown = [f"{100 * error:+.{0 if abs(error) > 0.02 else 1}f}" for error in dict.fromkeys(errors)]
    return f"{' to '.join(shown)} %"
