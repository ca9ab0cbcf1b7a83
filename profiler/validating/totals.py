"""A run's totals beside a simulation of the workload that the scenario states.

The file says how its client sent and how many requests; the scenario says their lengths, prefixes and classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from simbatch.profiler.validating.bounds import Bounds
from simbatch.profiler.validating.real_run import Run, ToldRun, simulated_run
from simbatch.profiler.validating.requests import Requests
from simbatch.profiler.validating.simulated import simulate_requests
from simbatch.profiler.validating.validation import Validation
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.scenario import Scenario, resolve
from simbatch.sim.scenario.reading.source import Value
from simbatch.sim.search.rates import at_rate
from simbatch.sim.workload import open_workload
from simbatch.sim.workload.arrivals import ClosedLoop
from simbatch.sim.workload.bench import BenchTotals

MAX_OFF = 0.05  # share that a mean length may differ by from the scenario's
ORIGIN = "--recorded"


def validate_totals(scenario: Scenario, totals: BenchTotals, bounds: Bounds | None, file: str) -> Validation:
    """UserError where the totals are not those of the scenario's workload."""
    scenario = scenario.override(_load_of(scenario, totals), origin=ORIGIN)
    resolved = resolve(scenario)
    try:
        requests = Requests.of(open_workload(scenario.workload, seed=scenario.seed, folder=scenario.folder))
    except UserError as error:
        raise scenario.relocated(error) from error.__cause__
    _check_lengths(scenario, totals, requests)
    simulated: Run = simulated_run(simulate_requests(resolved, requests))
    note = "the file has a run's totals alone: lengths and prefixes are the scenario's"
    if scenario.workload.trace is None:
        note += ", load and number of requests the file's where it says them"
    facts = {"mode": "recorded", "file": file, "kind": totals.tool, "load": str(totals.load), "model": totals.model}
    real = [ToldRun(totals.totals, totals.untold)]
    return Validation(real, simulated, resolved.cost_model(), facts, (note, *totals.notes), bounds)


def _load_of(scenario: Scenario, totals: BenchTotals) -> Mapping[str, Value]:
    """The changes that make a synthetic scenario send as the file's client did."""
    workload, load = scenario.workload, totals.load
    if workload.trace is not None or workload.mix is not None:
        return {}
    changes: dict[str, Value] = {} if totals.num_requests is None else {"workload.num_prompts": totals.num_requests}
    if isinstance(workload.arrival, ClosedLoop) and load.max_concurrency is not None:
        return changes | {"workload.arrival.max_concurrency": load.max_concurrency}
    if load.max_concurrency is not None:
        changes["workload.max_concurrency"] = load.max_concurrency
    if load.request_rate is None:
        return changes
    if math.isinf(load.request_rate):
        return changes | {
            "workload.arrival": {"process": "all_at_once"},
            "workload.request_rate": None,
            "workload.burstiness": None,
        }
    return changes | dict(at_rate(scenario, load.request_rate))


def _check_lengths(scenario: Scenario, totals: BenchTotals, requests: Requests) -> None:
    problems = []
    for key, told, ours in (
        ("prompt_len", totals.num_prompt_tokens, requests.all.num_prompt_tokens),
        ("output_len", totals.num_output_tokens, requests.all.num_output_tokens),
    ):
        mean = sum(ours) / len(ours)
        if told and abs(mean / told - 1) > MAX_OFF:
            what = key.replace("_len", "s")
            rule = f"{totals.place} has {what} of {told:,.1f} tokens on average, and the scenario's have {mean:,.1f}"
            problems.append(Problem(scenario.locate(("workload", key)), rule, mend="state the workload that was run"))
    if problems:
        raise UserError(*problems)
