"""The arrival processes of a scenario, as pydantic models; `arrivals.py` draws from them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from simbatch.sim.workload.section import Burstiness, Count, Duration, Mistake, Rate, Seconds, Section, refuse

_RATE = "requests per second; here or beside `arrival`"
_BURSTINESS = "shape of the gamma gaps: 1 is Poisson, less is burstier (default 1)"


class Gamma(Section):
    """Gamma gaps, as `vllm bench serve --request-rate --burstiness`; what a workload without `arrival` has."""

    process: Literal["gamma"]
    request_rate: Rate | None = Field(default=None, description=_RATE)
    burstiness: Burstiness | None = Field(default=None, description=_BURSTINESS)
    rescale: bool | None = Field(
        default=None,
        description="put the last arrival at num_prompts / request_rate, as vLLM does (default true)",
    )


class Poisson(Section):
    """The unscaled Poisson process that theory means."""

    process: Literal["poisson"]
    request_rate: Rate | None = Field(default=None, description=_RATE)


class Constant(Section):
    """One request every 1 / request_rate seconds, the first after one gap."""

    process: Literal["constant"]
    request_rate: Rate | None = Field(default=None, description=_RATE)


class AllAtOnce(Section):
    """Everything at time 0, as `vllm bench serve` with an infinite request rate."""

    process: Literal["all_at_once"]


class OnOff(Section):
    """Bursts of a fixed length and pauses between them; starts with a burst."""

    process: Literal["on_off"]
    request_rate: Rate | None = Field(default=None, description="requests per second within a burst")
    off_request_rate: Annotated[float, Field(ge=0, le=1e9)] = Field(
        default=0.0, description="requests per second between bursts"
    )
    on_s: Duration = Field(description="how long a burst lasts, s")
    off_s: Duration = Field(description="how long the pause after it lasts, s")
    burstiness: Burstiness | None = Field(default=None, description=_BURSTINESS)


class Ramp(Section):
    """A rate that goes from one value to another over the requests, as `vllm bench serve --ramp-up-strategy`."""

    process: Literal["ramp"]
    ramp_up_strategy: Literal["linear", "exponential"] = Field(
        default="linear", description="how the rate goes from start to end: linear or exponential, by request number"
    )
    ramp_up_start_rps: Rate = Field(description="requests per second at the first request")
    ramp_up_end_rps: Rate = Field(description="requests per second at the last request")
    burstiness: Burstiness | None = Field(default=None, description=_BURSTINESS)


class Daily(Section):
    """A rate that swings as a cosine: request_rate * (1 + amplitude * cos(2 pi (t - peak_s) / period_s))."""

    process: Literal["daily"]
    request_rate: Rate | None = Field(default=None, description="mean requests per second over a period")
    amplitude: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5, description="how far the rate swings: 0.5 is from half to one and a half times the mean"
    )
    period_s: Duration = Field(default=86400.0, description="length of a day, s")
    peak_s: Seconds | None = Field(default=None, description="when the rate is highest, s (default: half a period)")
    burstiness: Burstiness | None = Field(default=None, description=_BURSTINESS)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.peak_s is not None and self.peak_s > self.period_s:
            refuse(self, [Mistake("peak_s", f"must be at most period_s ({self.period_s:g})", "lower it")])
        return self


class ClosedLoop(Section):
    """A fixed number of users, each with one request at a time."""

    process: Literal["closed_loop"]
    max_concurrency: Count | None = Field(default=None, description="number of users; here or beside `arrival`")
    think_time_s: Seconds = Field(default=0.0, description="a user's pause between an answer and its next request, s")


Arrival = Annotated[
    Gamma | Poisson | Constant | AllAtOnce | OnOff | Ramp | Daily | ClosedLoop, Field(discriminator="process")
]
