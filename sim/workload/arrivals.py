"""Arrival times of synthetic workloads.

Gamma gaps follow `get_request` of vllm/benchmarks/serve.py: shape `burstiness`, mean 1 / rate, summed from the first
request on, so the first one arrives after a gap; then stretched, unless a ramp is asked for, so that the last arrival
is at num_prompts / request_rate. A ramp's rate goes by the request's number. Rates that go by time (`on_off`, `daily`)
take a process of rate 1 through the inverse of the cumulative rate, which keeps them exact at every change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.json_values import Burstiness, Count, Duration, Mistake, Rate, Seconds, Strict, refuse
from simbatch.sim.workload.chunk import CHUNK_SIZE

_RATE = "requests per second; here or next to `arrival`"
_BURSTINESS = "shape of the gamma gaps: 1 is Poisson, less is burstier (default 1)"


class Gamma(Strict):
    """Gamma gaps, as `vllm bench serve --request-rate --burstiness`; what a workload without `arrival` has."""

    process: Literal["gamma"]
    request_rate: Rate | None = Field(default=None, description=_RATE)
    burstiness: Burstiness | None = Field(default=None, description=_BURSTINESS)
    rescale: bool | None = Field(
        default=None,
        description="put the last arrival at num_prompts / request_rate, as vLLM does (default true)",
    )


class Poisson(Strict):
    """The unscaled Poisson process that theory means."""

    process: Literal["poisson"]
    request_rate: Rate | None = Field(default=None, description=_RATE)


class Constant(Strict):
    """One request every 1 / request_rate seconds, the first after one gap."""

    process: Literal["constant"]
    request_rate: Rate | None = Field(default=None, description=_RATE)


class AllAtOnce(Strict):
    """Everything at time 0, as `vllm bench serve` with an infinite request rate."""

    process: Literal["all_at_once"]


class OnOff(Strict):
    """Bursts of a fixed length and pauses between them; starts with a burst."""

    process: Literal["on_off"]
    request_rate: Rate | None = Field(default=None, description="requests per second within a burst")
    off_request_rate: Annotated[float, Field(ge=0, le=1e9)] = Field(
        default=0.0, description="requests per second between bursts"
    )
    on_s: Duration = Field(description="how long a burst lasts, s")
    off_s: Duration = Field(description="how long the pause after it lasts, s")
    burstiness: Burstiness | None = Field(default=None, description=_BURSTINESS)


class Ramp(Strict):
    """A rate that goes from one value to another over the requests, as `vllm bench serve --ramp-up-strategy`."""

    process: Literal["ramp"]
    ramp_up_strategy: Literal["linear", "exponential"] = Field(
        default="linear", description="how the rate goes from start to end: linear or exponential, by request number"
    )
    ramp_up_start_rps: Rate = Field(description="requests per second at the first request")
    ramp_up_end_rps: Rate = Field(description="requests per second at the last request")
    burstiness: Burstiness | None = Field(default=None, description=_BURSTINESS)


class Daily(Strict):
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


class ClosedLoop(Strict):
    """A fixed number of users, each with one request at a time."""

    process: Literal["closed_loop"]
    max_concurrency: Count | None = Field(default=None, description="number of users; here or next to `arrival`")
    think_time_s: Seconds = Field(default=0.0, description="a user's pause between an answer and its next request, s")


Arrival = Annotated[
    Gamma | Poisson | Constant | AllAtOnce | OnOff | Ramp | Daily | ClosedLoop, Field(discriminator="process")
]


Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
NewStream = Callable[[], np.random.Generator]

MAX_TIME_S = 9_200_000.0  # 106 days: what 63 bits of picoseconds hold
_DAY_TABLE = 1 << 17  # a daily rate is constant within so many slices of its period


def arrival_times(process: Arrival, num_prompts: int, new_stream: NewStream) -> Iterator[Ints]:
    """Arrival times in ps, in chunks of up to `CHUNK_SIZE`; `new_stream` gives the same generator every time.

    UserError when they leave the clock's range.
    """
    for times_s in _times_s(process, num_prompts, new_stream):
        if not times_s[-1] <= MAX_TIME_S:  # NaN neither
            raise _too_long(num_prompts)
        yield np.rint(times_s * PS_PER_S).astype(np.int64)


def _too_long(num_prompts: int) -> UserError:
    rule = f"arrivals end after more than {MAX_TIME_S:.0f} s (106 days), which is all that the clock holds"
    mend = "lower num_prompts, or raise the request rate"
    return UserError(Problem("workload.num_prompts", rule, num_prompts, mend))


def _times_s(process: Arrival, n: int, new_stream: NewStream) -> Iterator[Floats]:
    match process:
        case AllAtOnce() | ClosedLoop():
            return (np.zeros(size) for _, size in _sizes(n))
        case Constant():
            rate = _given(process.request_rate)
            return (np.arange(first + 1, first + size + 1) / rate for first, size in _sizes(n))
        case Poisson():
            return _sums(_scaled_gaps(1.0, _given(process.request_rate)), n, new_stream())
        case Gamma():
            return _gamma(process, n, new_stream)
        case Ramp():
            return _sums(_ramp_gaps(process, n), n, new_stream())
        case OnOff():
            return map(_on_off_inverse(process), _unit_sums(process.burstiness, n, new_stream()))
        case Daily():
            return map(_daily_inverse(process), _unit_sums(process.burstiness, n, new_stream()))


def _given(rate: float | None) -> float:
    assert rate is not None, "Workload's validators see to it"
    return rate


def _sizes(n: int) -> Iterator[tuple[int, int]]:
    """First number and length of each chunk."""
    return ((first, min(CHUNK_SIZE, n - first)) for first in range(0, n, CHUNK_SIZE))


Gaps = Callable[[np.random.Generator, int, int], Floats]  # (generator, number of the first request, how many)


def _sums(gaps: Gaps, n: int, rng: np.random.Generator) -> Iterator[Floats]:
    total = 0.0
    for first, size in _sizes(n):
        times = np.cumsum(np.concatenate(([total], gaps(rng, first, size))))[1:]
        total = float(times[-1])
        yield times


def _scaled_gaps(burstiness: float, rate: float) -> Gaps:
    return lambda rng, _, size: rng.gamma(burstiness, 1 / (rate * burstiness), size)


def _unit_sums(burstiness: float | None, n: int, rng: np.random.Generator) -> Iterator[Floats]:
    return _sums(_scaled_gaps(burstiness or 1.0, 1.0), n, rng)


def _gamma(process: Gamma, n: int, new_stream: NewStream) -> Iterator[Floats]:
    rate = _given(process.request_rate)
    gaps = _scaled_gaps(process.burstiness or 1.0, rate)
    if process.rescale is False:
        return _sums(gaps, n, new_stream())
    last = 0.0
    for times in _sums(gaps, n, new_stream()):  # a first pass for the sum: nothing of it is kept
        last = float(times[-1])
    if not math.isfinite(last) or not math.isfinite(n / rate):
        raise _too_long(n)
    factor = n / rate / last if last > 0 else math.inf
    if not math.isfinite(factor):
        rule = f"all {n} arrivals fall together, and cannot be stretched to num_prompts / request_rate"
        raise UserError(Problem("workload.burstiness", rule, process.burstiness or 1.0, "raise it"))
    return (times * factor for times in _sums(gaps, n, new_stream()))


def _ramp_gaps(process: Ramp, n: int) -> Gaps:
    start, end = process.ramp_up_start_rps, process.ramp_up_end_rps
    burstiness = process.burstiness or 1.0

    def gaps(rng: np.random.Generator, first: int, size: int) -> Floats:
        progress = np.arange(first, first + size) / max(n - 1, 1)
        linear = process.ramp_up_strategy == "linear"
        rates = start + (end - start) * progress if linear else start * (end / start) ** progress
        return rng.gamma(burstiness, 1 / (rates * burstiness))

    return gaps


def _on_off_inverse(process: OnOff) -> Callable[[Floats], Floats]:
    on, off = _given(process.request_rate), process.off_request_rate
    on_mass, off_mass = on * process.on_s, off * process.off_s

    def inverse(mass: Floats) -> Floats:
        cycle, rest = np.divmod(mass, on_mass + off_mass)
        after: Any = np.maximum(rest - on_mass, 0) / off if off else 0.0
        within = np.where(rest <= on_mass, rest / on, process.on_s + after)
        times: Floats = cycle * (process.on_s + process.off_s) + within
        return times

    return inverse


def _daily_inverse(process: Daily) -> Callable[[Floats], Floats]:
    rate, period = _given(process.request_rate), process.period_s
    peak = period / 2 if process.peak_s is None else process.peak_s
    time = np.linspace(0, period, _DAY_TABLE + 1)
    swing = process.amplitude * period / (2 * np.pi)
    angle = 2 * np.pi / period
    mass_by = rate * (time + swing * (np.sin(angle * (time - peak)) + np.sin(angle * peak)))
    mass_by = np.maximum.accumulate(mass_by)  # rounding, where the rate is 0

    def inverse(mass: Floats) -> Floats:
        day, rest = np.divmod(mass, rate * period)
        times: Floats = day * period + np.interp(rest, mass_by, time)
        return times

    return inverse
