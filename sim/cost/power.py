"""What a GPU draws: a straight line through measured servers, in watts; an estimate, without host, fans and cooling."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from simbatch.sim.strict import Strict

Watts = Annotated[float, Field(ge=0, le=1e5, allow_inf_nan=False)]
JOULES_PER_KWH = 3.6e6


class GpuPower(Strict):
    """`idle_w` always, `busy_w` more while the device has a step, and `per_token_j` for each token of it, in and out.

    For example 150 + 300 x 0.9 + 0.01 x 15,000 tokens per second = 570 W.
    """

    idle_w: Watts = Field(description="between steps, the model loaded, W")
    busy_w: Watts = Field(description="more during steps, W")
    per_token_j: Annotated[float, Field(ge=0, le=1e3, allow_inf_nan=False)] = Field(
        description="more for each token, prompts and outputs alike, J"
    )
    error: Annotated[float, Field(ge=0, le=1)] = Field(description="largest relative error of runs not fitted on")
    source: str = Field(description="what was measured")

    def watts(self, busy_share: float, tokens_per_s: float) -> float:
        """Of one GPU on average."""
        return self.idle_w + self.busy_w * busy_share + self.per_token_j * tokens_per_s


def kwh_per_million(watts: float, tokens_per_s: float) -> float | None:
    """Energy of a million tokens at this pace: 720 W at 1,000 tokens a second are 0.2 kWh."""
    return watts / tokens_per_s * 1e6 / JOULES_PER_KWH if tokens_per_s else None
