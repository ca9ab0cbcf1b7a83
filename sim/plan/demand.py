"""The traffic that a fleet is planned for: a scenario's, a trace's, or a model's with lengths, at a rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, isfinite
from pathlib import Path
from typing import Any

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.plan.peak import PeakWindow, peak_of
from simbatch.sim.scenario import Scenario
from simbatch.sim.search.rates import at_rate, own_rate, rates_of, rounded
from simbatch.sim.workload import open_workload
from simbatch.sim.workload.model import TrafficShape

MIN_SECONDS, MAX_SECONDS = 120.0, 300.0  # of steady arrivals: a queue that grows must show, and so must the tail
MIN_REQUESTS, MAX_REQUESTS = 500, 40_000  # of one simulation
PROMPT_CV, OUTPUT_CV, LONGEST = 1.0, 0.8, 8  # of lengths of which the mean alone is known; the longest over the mean
STEADY = ("gamma", "poisson", "constant")
Settings = dict[str, Any]


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

    @property
    def is_cut(self) -> bool:
        """Whether fewer requests are simulated than come in the time."""
        return self.scenario.workload.trace is None and self.rate * self.seconds > MAX_REQUESTS


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
