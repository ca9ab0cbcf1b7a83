"""The traffic that a fleet is planned for (of a scenario, a trace, or a model with lengths), and what is asked of it.

A day is planned for its peak, not for its mean: of a long trace the busiest window is what a fleet must bear. Arrivals
are counted in steps of a tenth of the window; the window is the one with the most tokens, prompts and outputs together.
It is named by the file's own clock, so that the scenario that is written can be read, and simulated, alone.

A verdict is what the simulations of one fleet at one rate say of the limits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf, isfinite
from pathlib import Path
from typing import Any

import numpy as np

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.metrics.steady import OVERLOADED
from simbatch.sim.plugins.router import Router
from simbatch.sim.results.runs import Settings, Summary, refusal_of
from simbatch.sim.scenario import Scenario
from simbatch.sim.search.loads import at_rate, own_rate, rates_of, rounded
from simbatch.sim.tuning.goal import Limit
from simbatch.sim.workload import open_workload
from simbatch.sim.workload.formats import RESULTS
from simbatch.sim.workload.model import TrafficShape
from simbatch.sim.workload.traces.source import TraceSource
from simbatch.sim.workload.turns import turns_in

STEPS = 10  # of a window
LONG = 2  # windows: what is shorter is simulated as it is


@dataclass(frozen=True)
class PeakWindow:
    """`between` is [START, END) by the file's own clock; `rate` is its, and `mean` the whole trace's, in req/s."""

    between: tuple[str | int | float, str | int | float]
    seconds: float
    requests: int
    rate: float
    mean: float

    def text(self) -> str:
        """For the report."""
        start, end = self.between
        return (
            f"planned for the trace's busiest {self.seconds:g} s, {start} to {end} by its own clock: "
            f"{self.rate:.3g} req/s, {self.rate / self.mean:.2g} times the mean of {self.mean:.3g}"
        )


def peak_of(scenario: Scenario, seconds: float) -> PeakWindow | None:
    """The window with the most tokens; None where the trace is short, or says itself which part of it is meant."""
    trace = scenario.workload.trace
    if trace is None or trace.between is not None or trace.limit is not None:
        return None
    as_it_is = scenario.override({"workload.trace.rate_scale": 1.0, "workload.trace.resample_blocks": None})
    source = open_workload(as_it_is.workload, seed=scenario.seed, folder=scenario.folder)
    if turns_in(source) is not None:  # turns wait for answers: nothing says when they are sent
        return None
    chunks = [
        (np.array(c.arrival_ps), np.array(c.num_prompt_tokens) + np.array(c.num_output_tokens)) for c in source.chunks()
    ]
    arrival_ps, tokens = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    window_ps = round(seconds * PS_PER_S)
    if not isinstance(source, TraceSource) or source.format in RESULTS or arrival_ps[-1] < LONG * window_ps:
        return None
    step_ps = window_ps // STEPS
    work = np.bincount(arrival_ps // step_ps, weights=tokens)
    sums = np.convolve(work, np.ones(STEPS), mode="valid")
    begin_ps = int(np.argmax(sums)) * step_ps
    inside = int(((arrival_ps >= begin_ps) & (arrival_ps < begin_ps + STEPS * step_ps)).sum())
    between = (source.moment(begin_ps), source.moment(begin_ps + STEPS * step_ps))
    mean = (len(arrival_ps) - 1) / (arrival_ps[-1] / PS_PER_S)
    return PeakWindow(between, seconds, inside, inside / seconds, float(mean))


MIN_SECONDS, MAX_SECONDS = 120.0, 300.0  # of steady arrivals: a queue that grows must show, and so must the tail
MIN_REQUESTS, MAX_REQUESTS = 500, 40_000  # of one simulation
PROMPT_CV, OUTPUT_CV, LONGEST = 1.0, 0.8, 8  # of lengths of which the mean alone is known; the longest over the mean
STEADY = ("gamma", "poisson", "constant")


@dataclass(frozen=True)
class Demand:
    """`rate` requests per second in all, growth included; `own` is what the scenario has as it stands."""

    scenario: Scenario
    rate: float
    own: float
    seconds: float
    peak: PeakWindow | None = None  # of a long trace the window that is planned for

    def settings(self, rate: float) -> Settings:
        """What makes the scenario's traffic `rate` requests per second, for as long as it lasts."""
        first, *_ = rates = rates_of(self.scenario)
        value = rates[first] * rate / self.own
        return {**at_rate(self.scenario, rounded(value)), **self._lengths(rate / self.own)}

    def router(self, name: str) -> Router:
        """The one of this name; UserError where there is none."""
        settings = {"cluster": {"replicas": 2, "router": {"name": name}}}
        return self.scenario.override(settings, origin="--router").build_router()

    def _lengths(self, factor: float) -> Settings:
        """As many requests as come in that time; a trace has those that it has."""
        workload = self.scenario.workload
        if workload.trace is not None:
            return self._limit_of_trace(factor)
        if workload.sessions is not None:
            per_session = self.own / next(iter(rates_of(self.scenario).values()))
            num_sessions = max(1, round(self._num_prompts(self.own * factor) / per_session))
            return {"workload.sessions.num_sessions": num_sessions}
        if workload.mix is None:
            return {"workload.num_prompts": self._num_prompts(self.own * factor)}
        total = self._num_prompts(self.own * factor)
        rates = [rate for key, rate in rates_of(self.scenario).items() if _is_main(key)]
        return {f"workload.mix.{i}.num_prompts": max(1, round(total * rate / self.own)) for i, rate in enumerate(rates)}

    def _limit_of_trace(self, factor: float) -> Settings:
        """Of a peak window at a lower rate as many requests as come in its time."""
        if self.peak is None or factor >= 1:
            return {}
        return {"workload.trace.limit": min(self.peak.requests, max(ceil(self.peak.requests * factor), MIN_REQUESTS))}

    def _num_prompts(self, rate: float) -> int:
        return min(max(ceil(rate * self.seconds), MIN_REQUESTS), MAX_REQUESTS)


def demand_of(scenario: Scenario, rate: float | None, growth: float = 1.0, seconds: float | None = None) -> Demand:
    """The scenario's traffic at `rate` requests per second (None: as it stands) times `growth`."""
    for flag, value in (("--rate", rate), ("--growth", growth), ("--seconds", seconds)):
        if value is not None and not (isfinite(value) and value > 0):
            raise UserError(Problem(flag, "must be a number above 0", value, f"for example {flag} 2"))
    if scenario.cluster is not None:
        scenario = scenario.override({"cluster": None}, origin="plan")
    peak = peak_of(scenario, seconds or MAX_SECONDS)
    if peak is not None:
        scenario = scenario.override({"workload.trace.between": list(peak.between)}, origin="plan")
    own = own_requests_per_s(scenario)
    return Demand(scenario, (rate or own) * growth, own, seconds or _seconds(scenario, own), peak)


def own_requests_per_s(scenario: Scenario) -> float:
    """What the scenario says: of a mix the sum of its parts, of a trace what was recorded, at its scale."""
    rates = rates_of(scenario)
    if scenario.workload.trace is not None:
        return own_rate(scenario) * next(iter(rates.values()))
    if scenario.workload.sessions is not None:
        source = open_workload(scenario.workload, seed=scenario.seed, folder=scenario.folder)
        per_session = (source.num_requests or 0) / scenario.workload.sessions.num_sessions
        return per_session * next(iter(rates.values()))
    return sum(rate for key, rate in rates.items() if _is_main(key))


def _is_main(key: str) -> bool:
    """Whether this rate is a part's first: a burst's, not what comes between bursts."""
    return key.endswith((".request_rate", ".ramp_up_start_rps"))


def _seconds(scenario: Scenario, own: float) -> float:
    """As long as the scenario's own requests take: two to five minutes, more only where the rate goes up and down."""
    if scenario.workload.trace is not None:
        return 0.0
    if (sessions := scenario.workload.sessions) is not None:
        return max(MIN_SECONDS, sessions.num_sessions / next(iter(rates_of(scenario).values())))
    parts: Sequence[TrafficShape] = scenario.workload.mix or [scenario.workload]
    own_seconds = max(MIN_SECONDS, sum(part.num_prompts or 0 for part in parts) / own)
    is_steady = all(part.resolved_arrival().process in STEADY for part in parts)
    return min(own_seconds, MAX_SECONDS) if is_steady else own_seconds


def traffic_of_trace(path: Path) -> dict[str, Any]:
    """The `workload` of a trace's file, whose format is told by its content."""
    return {"trace": {"path": str(path.absolute())}}


def traffic_of_lengths(rate: float, prompt_len: int, output_len: int, prefix_len: int | None) -> dict[str, Any]:
    """The `workload` of Poisson arrivals with lognormal lengths of these means, behind one prefix that all share."""
    for flag, value in (("--prompt-len", prompt_len), ("--output-len", output_len)):
        if value < 1:
            raise UserError(Problem(flag, "must be a number of tokens, 1 or more", value, f"for example {flag} 500"))
    content: dict[str, Any] = {
        "num_prompts": MIN_REQUESTS,
        "request_rate": rate,
        "prompt_len": _lengths(prompt_len, PROMPT_CV),
        "output_len": _lengths(output_len, OUTPUT_CV),
    }
    return content if not prefix_len else {**content, "prefix": {"prefix_len": prefix_len}}


def _lengths(mean: int, cv: float) -> dict[str, Any]:
    return {"distribution": "lognormal", "mean": mean, "cv": cv, "max": LONGEST * mean}


MAX_REFUSED = 0.001  # share of the requests that may be rejected or refused
REFUSED = "refused"


@dataclass(frozen=True)
class Verdict:
    """What the runs of one fleet at one rate say of the limits: the worst run of each figure."""

    values: Mapping[str, float | None]
    excess: Mapping[str, float]  # by which share each limit is broken (above 0) or kept (below)
    is_overloaded: bool
    refused_share: float
    throughput: float  # requests per second, the least
    output_throughput: float
    input_throughput: float
    concurrency: float
    busy_share: float  # of the devices' time, on average

    @classmethod
    def of(cls, summaries: Sequence[Summary], limits: Sequence[Limit]) -> Verdict:
        """Of the runs under several seeds."""
        figures = [{limit.metric.key: limit.metric.of(summary) for limit in limits} for summary in summaries]
        worst = [max(figures, key=lambda run, key=limit: key.excess(run[key.metric.key])) for limit in limits]  # type: ignore[misc]
        values = {limit.metric.key: run[limit.metric.key] for limit, run in zip(limits, worst, strict=True)}
        return cls(
            values=values,
            excess={limit.metric.key: limit.excess(values[limit.metric.key]) for limit in limits},
            is_overloaded=any(refusal_of(summary) == OVERLOADED for summary in summaries),
            refused_share=max(map(_refused_share, summaries)),
            throughput=min(float(summary["request_throughput"] or 0.0) for summary in summaries),
            output_throughput=_mean([float(summary["output_throughput"] or 0.0) for summary in summaries]),
            input_throughput=_mean([_input_throughput(summary) for summary in summaries]),
            concurrency=max(summary["simbatch"]["mean_concurrent_requests"] or 0.0 for summary in summaries),
            busy_share=_mean([float(summary["simbatch"]["device_busy_share"] or 0.0) for summary in summaries]),
        )

    @property
    def broken(self) -> dict[str, float]:
        """What is broken, by which share; a growing queue and refused requests among them."""
        found = {key: excess for key, excess in self.excess.items() if excess > 0}
        if self.is_overloaded:
            found[OVERLOADED] = inf
        if self.refused_share > MAX_REFUSED:
            found[REFUSED] = self.refused_share
        return found

    @property
    def is_kept(self) -> bool:
        """Whether every limit is kept."""
        return not self.broken

    @property
    def margin(self) -> float:
        """By how much the limit that is nearest is kept; below 0 where it is broken."""
        return -max([*self.excess.values(), *self.broken.values()], default=-1.0)

    @property
    def nearest(self) -> str | None:
        """What is broken most, or would be next."""
        return max(self.broken or self.excess, key=lambda key: (self.broken or self.excess)[key], default=None)


def _refused_share(summary: Summary) -> float:
    requests = summary["simbatch"]["requests"]
    lost = sum(int(requests.get(kind, 0)) for kind in ("rejected", "refused"))
    return lost / max(1, int(requests["total"]))


def _input_throughput(summary: Summary) -> float:
    duration = summary["duration"]
    return float(summary["total_input_tokens"]) / duration if duration else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
