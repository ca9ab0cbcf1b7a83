"""What a seed changes, and what several seeds are then runs of: one rule for every command that asks for an interval.

A seed draws arrivals, lengths, shares, noise and predictions. Where none of these is drawn, all seeds are one run, and
one is enough. A trace leaves its traffic to no seed, whatever else is drawn; an interval for it needs other traffic of
the same kind, so several runs of it are of the trace resampled in blocks (`sim/workload/traces/resample.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from simbatch.sim.scenario import resolve
from simbatch.sim.scenario.model import Scenario
from simbatch.sim.workload.model import TrafficShape

BLOCKS = 20  # that searches resample a trace in
RESAMPLE = "workload.trace.resample_blocks"
STEADY_PROCESSES = ("constant", "all_at_once", "closed_loop")  # whose times no seed draws
ONE_RUN = "the seed changes nothing here, so one run says it all"


def has_chance(scenario: Scenario) -> bool:
    """Whether two seeds can differ in anything."""
    workload = scenario.workload
    if scenario.cluster is not None and (scenario.build_router().draws or _groups_draw(scenario)):
        return True
    if (
        scenario.engine.step_noise
        or resolve(scenario).host_noise()
        or scenario.build_policy().parameters().get("predictor_error")
    ):
        return True
    if any(len(shares) > 1 for shares in (workload.priority_shares(), workload.tenant_shares())):
        return True
    if workload.trace is not None:
        return workload.trace.resample_blocks is not None
    if workload.sessions is not None:
        return True
    parts: Sequence[TrafficShape] = workload.mix or [workload]
    return workload.prefix is not None or any(map(_is_drawn, parts))


def _groups_draw(scenario: Scenario) -> bool:
    """Whether any group of a cluster has noise."""
    fleet = resolve(scenario).fleet
    return fleet is not None and any(g.resolved.noise() or g.resolved.host_noise() for g in fleet.groups)


def _is_drawn(traffic: TrafficShape) -> bool:
    lengths = (traffic.prompt_len, traffic.output_len)
    if any(length is None or length.distribution != "fixed" for length in lengths):
        return True
    return traffic.resolved_arrival().process not in STEADY_PROCESSES


def resampling(scenario: Scenario) -> dict[str, Any]:
    """The setting with which several runs of the scenario are runs of other traffic; none where the seed draws it."""
    trace = scenario.workload.trace
    return {RESAMPLE: BLOCKS} if trace is not None and trace.resample_blocks is None else {}


def is_resampled(scenario: Scenario) -> bool:
    """Whether several runs of it are one trace drawn anew, so that no number of them knows more than the trace."""
    return scenario.workload.trace is not None


def seeds_of(scenarios: Iterable[Scenario], count: int) -> list[int]:
    """The seeds of `count` runs of each of them, from the first one's on; one where no seed changes anything.

    Of a trace the runs are those that `resampling` makes.
    """
    every = list(scenarios)
    is_one = not any(is_resampled(scenario) or has_chance(scenario) for scenario in every)
    return [every[0].seed + i for i in range(1 if is_one else count)]


def num_blocks(scenario: Scenario) -> int | None:
    """In how many blocks several runs of it resample its trace; None without one."""
    trace = scenario.workload.trace
    return None if trace is None else trace.resample_blocks or BLOCKS


def runs_words(scenario: Scenario, count: int) -> str:
    """What so many runs are: `8 seeds`, `8 resamplings of the trace in 20 blocks of time`."""
    blocks = num_blocks(scenario)
    return f"{count} seeds" if blocks is None else f"{count} resamplings of the trace in {blocks} blocks of time"
