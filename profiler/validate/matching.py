"""The requests of a recorded run, and those of the scenario: which of the two are simulated, and whether they agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from simbatch.profiler.records.recorded import Floats, Recorded
from simbatch.profiler.records.requests import Requests
from simbatch.sim import engine
from simbatch.sim.clock import PS_PER_S, to_ps
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.report.result import Result
from simbatch.sim.scenario import Resolved, Scenario
from simbatch.sim.search.simulate import run_facts
from simbatch.sim.workload import open_workload
from simbatch.sim.workload.chunk import RequestChunk

LATE_S = 0.05  # a difference between the scenario's times and the recorded ones that is told
SCENARIO, RECORDED = "scenario", "recorded"


@dataclass(frozen=True)
class Matched:
    """Both sides' requests, in the same order; `start_s` is what the real run's clock shows at its first send."""

    requests: Requests
    recorded: Recorded
    start_s: float
    notes: tuple[str, ...]


def matched(recorded: Recorded, scenario: Requests | None, source: str) -> Matched:
    """`source` says whose arrivals and lengths are simulated: `scenario` (UserError when they differ) or `recorded`.

    The file's requests take their shared prefixes, priorities and tenants from a scenario that has the same ones.
    """
    failed = recorded.error != ""
    notes = []
    if failed.any():
        why = next(text for text in recorded.error if text)
        notes.append(
            f"{int(failed.sum()):,} of {len(recorded):,} requests failed in the recorded run ({why}): left out"
        )
    difference = "" if scenario is None else _difference(recorded, scenario)
    kept = np.flatnonzero(~failed)
    ran = recorded.take(kept)
    notes += ran.notes
    if source == SCENARIO:
        assert scenario is not None
        if difference:
            mend = "name the trace that was replayed, or --requests recorded, which takes the file's own requests"
            raise UserError(Problem("--recorded", f"its requests are not the scenario's: {difference}", mend=mend))
        requests = replace(_only(scenario, kept), max_concurrency=ran.max_concurrency)
        if ran.is_closed:  # no planned times: each goes when a place is free
            return Matched(requests.arriving(_ps(ran.arrivals_s())), ran, 0.0, tuple(notes))
        planned_s = np.array(requests.all.arrival_ps) / PS_PER_S
        start_s = float(np.median(planned_s - ran.sent_s))
        late_s = np.abs(ran.sent_s + start_s - planned_s).max()
        if late_s > LATE_S and ran.max_concurrency is None:
            notes.append(f"the recorded run sent its requests up to {late_s:.2f} s off the scenario's times")
        return Matched(requests, ran, start_s, tuple(notes))
    same = scenario if scenario is not None and not difference else None
    requests = _own(ran, None if same is None else _only(same, kept))
    if same is None:
        notes.append(
            "arrivals and lengths are the recorded run's own; which prompts share a prefix is not known of them"
        )
    else:
        notes.append("arrivals are the recorded run's own; lengths and shared prefixes are the scenario's, as there")
    return Matched(requests, ran, 0.0, tuple(notes))


def _difference(recorded: Recorded, scenario: Requests) -> str:
    """The first thing that is not the same, in words; nothing when all is."""
    theirs, ours = len(recorded), len(scenario)
    if theirs != ours:
        return f"it has {theirs:,} of them, the scenario {ours:,}"
    outputs = np.where(recorded.error == "", recorded.num_output_tokens, scenario.all.num_output_tokens)
    for name, real, planned in (
        ("prompt", recorded.num_prompt_tokens, scenario.all.num_prompt_tokens),
        ("output", outputs, scenario.all.num_output_tokens),
    ):
        differs = np.flatnonzero(real != np.array(planned))
        if len(differs):
            i = int(differs[0])
            return (
                f"request {i} (in order of sending) has {int(real[i]):,} {name} tokens there and {planned[i]:,} in the "
                f"scenario, and {len(differs):,} of {ours:,} differ in it"
            )
    return ""


def _only(requests: Requests, kept: Sequence[int] | np.ndarray[tuple[int], np.dtype[np.int64]]) -> Requests:
    columns = {name: getattr(requests.all, name) for name in RequestChunk.__slots__}
    chosen: dict[str, Any] = {
        name: None if column is None else [column[i] for i in kept] for name, column in columns.items()
    }
    return replace(requests, all=RequestChunk(**chosen))


def _own(recorded: Recorded, scenario: Requests | None) -> Requests:
    times = _ps(recorded.arrivals_s())
    if scenario is not None:
        return replace(scenario.arriving(times), max_concurrency=recorded.max_concurrency)
    return Requests(
        RequestChunk(
            times,
            recorded.num_prompt_tokens.tolist(),
            recorded.num_output_tokens.tolist(),
            request_id=None if recorded.request_id is None else recorded.request_id.tolist(),
        ),
        max_concurrency=recorded.max_concurrency,
    )


def _ps(times_s: Floats) -> list[int]:
    return [to_ps(time_s) for time_s in times_s.tolist()]


def requests_of(scenario: Scenario) -> Requests:
    """The workload, read once; its mistakes stand where they are in the scenario."""
    try:
        return Requests.of(open_workload(scenario.workload, seed=scenario.seed, folder=scenario.folder))
    except UserError as error:
        raise scenario.relocated(error) from error.__cause__


def simulate_requests(resolved: Resolved, requests: Requests) -> Result:
    """The simulation of these requests, every step kept."""
    try:
        record = engine.run(
            resolved.engine,
            resolved.cost_model(),
            resolved.policy,
            requests,
            steps=True,
            noise=resolved.noise(),
            host_noise=resolved.host_noise(),
        )
    except UserError as error:
        raise resolved.scenario.relocated(error) from error.__cause__
    return Result(record, run_facts(resolved, record, requests))
