"""A real run beside its simulation: one that was recorded, or scenarios on a vLLM server of our own, started once.

Of a recording with totals alone the file says how its client sent and how many requests; the scenario says their
lengths, prefixes and classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from simbatch.profiler.profile import engine_of
from simbatch.profiler.profile.session import MeasuringSession, Spans
from simbatch.profiler.records import Requests
from simbatch.profiler.records.real_run import RealRun, ToldRun, simulated_run
from simbatch.profiler.records.recorded import AnyRecorded, Recorded, of_bench
from simbatch.profiler.records.samples import EngineFacts
from simbatch.profiler.server import Server, attached
from simbatch.profiler.server.client import Driver
from simbatch.profiler.server.result import KeptRuns
from simbatch.profiler.server.start import EngineOptions, started
from simbatch.profiler.validate import REAL, Bounds, Validation
from simbatch.profiler.validate.matching import RECORDED, SCENARIO, as_resolved, matched, requests_of, simulate_requests
from simbatch.profiler.validate.on_server import ServerOptions, ServerRuns, Told
from simbatch.serving.processes import run_loop
from simbatch.sim.clock import PS_PER_S, to_ps
from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.scenario import Resolved, Scenario, resolve
from simbatch.sim.scenario.reading import Value
from simbatch.sim.scheduler.config import parse_version
from simbatch.sim.search.loads import at_rate
from simbatch.sim.streams.described import described_result
from simbatch.sim.streams.judge import FEW_REQUESTS
from simbatch.sim.workload.arrivals import ClosedLoop
from simbatch.sim.workload.bench import BenchRun, BenchTotals

MAX_OFF = 0.05  # share that a mean length may differ by from the scenario's
ORIGIN = "--recorded"


def validate_totals(scenario: Scenario, totals: BenchTotals, bounds: Bounds | None, file: str) -> Validation:
    """UserError where the totals are not those of the scenario's workload."""
    scenario = scenario.override(_load_of(scenario, totals), origin=ORIGIN)
    resolved = resolve(scenario)
    requests = requests_of(scenario)
    _check_lengths(scenario, totals, requests)
    simulated: RealRun = simulated_run(simulate_requests(resolved, requests))
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


NO_ENGINE_CLOCK = "the file does not say when the engine took requests in: the client's clock alone is compared"

MIN_HITS = 0.05  # share of prompt tokens, below which chance says as much


def validate_recorded(
    scenario: Scenario, run: AnyRecorded, source: str | None, bounds: Bounds | None, file: str
) -> Validation:
    """`source` says whose arrivals and lengths are simulated, `scenario` or `recorded`.

    None: the scenario's when its workload is a trace, else the run's. Raises UserError when the run cannot be
    simulated or does not have the scenario's requests.
    """
    scenario = on_its_vllm(scenario)
    if isinstance(run, BenchTotals):
        if source == RECORDED:
            rule = "has a run's totals only, not its requests"
            raise UserError(
                Problem(run.place, rule, mend="leave out --requests, and state the workload in the scenario")
            )
        return validate_totals(scenario, run, bounds, file)
    resolved = resolve(scenario)
    limit, think_time_ps = _limit_of(scenario)
    recorded = (
        of_bench(run, max_concurrency=limit, is_closed=think_time_ps is not None) if isinstance(run, BenchRun) else run
    )
    _check_limit(scenario, recorded, limit)
    has_trace = scenario.workload.trace is not None
    both = matched(
        recorded,
        requests_of(scenario) if has_trace or source == SCENARIO else None,
        source or (SCENARIO if has_trace else RECORDED),
    )
    requests = replace(both.requests, think_time_ps=think_time_ps or 0)
    simulated = simulated_run(simulate_requests(resolved, requests))
    notes = [*both.notes, *(_streams_notes(run) if isinstance(run, BenchRun) else ())]
    taken_in_ps = None
    if both.recorded.taken_in_s is None:
        notes.append(NO_ENGINE_CLOCK)
    else:
        taken_in_ps = np.round((both.recorded.taken_in_s + both.start_s) * PS_PER_S).astype(np.int64)
        notes.append(_clocks_note(both.recorded.taken_in_s - both.recorded.sent_s))
    record = both.recorded.record(both.start_s, resolved.engine)
    real = RealRun(record, simulated.facts, taken_in_ps, untold=both.recorded.untold)
    facts = {"mode": "recorded", "file": file, "kind": recorded.kind, "load": recorded.load, "model": recorded.model}
    return Validation([real], simulated, resolved.cost_model(), facts, tuple(notes), bounds)


def on_its_vllm(scenario: Scenario) -> Scenario:
    """The scenario under the vLLM that its profile was measured with, unless it names one, or that is not simulated."""
    version = getattr(resolve(scenario).profile, "vllm_version", None)
    if scenario.engine.vllm_version is not None or version is None:
        return scenario
    try:
        parse_version(version)
    except UserError:
        return scenario
    return scenario.override({"engine.vllm_version": version}, origin="--recorded")


def _limit_of(scenario: Scenario) -> tuple[int | None, int | None]:
    """How many requests the scenario lets be in flight, and its users' pause (ps), None unless it is a closed loop."""
    arrival = scenario.workload.arrival
    if isinstance(arrival, ClosedLoop):
        return arrival.max_concurrency or scenario.workload.max_concurrency, to_ps(arrival.think_time_s)
    return scenario.workload.max_concurrency, None


def _check_limit(scenario: Scenario, recorded: Recorded, limit: int | None) -> None:
    if limit is None or limit == recorded.max_concurrency:
        return
    key = "max_concurrency" if scenario.workload.max_concurrency is not None else "arrival"
    rule = "the recorded run had another number of requests in flight"
    if recorded.max_concurrency is None:
        rule = "the recorded run was sent at the times in it, and the scenario holds requests back"
    mend = "remove it: the file says how it was sent"
    raise UserError(Problem(scenario.locate(("workload", key)), rule, limit, mend))


def _streams_notes(run: BenchRun) -> Iterator[str]:
    """What the real run's streams say that may set it apart from any simulation."""
    described = described_result(run)
    if isinstance(described, str) or described.judgement.num_requests < FEW_REQUESTS:
        return
    said = described.summary()
    if said["refusals"]:
        yield from (f"{REAL}its steps cannot be told: {reason}" for reason in said["refusals"])
        return
    yield from (f"{REAL}{warning}" for warning in said["warnings"])
    hits = said["prefix_hits"]["share"]
    if hits is not None and hits >= MIN_HITS:
        yield f"{REAL}{hits:.0%} of its prompt tokens took no time: they were cached, or computed elsewhere"


def _clocks_note(lag_s: np.ndarray[tuple[int], np.dtype[np.float64]]) -> str:
    return (
        f"the engine took requests in {1000 * lag_s.mean():.0f} ms after their send on average (at most "
        f"{1000 * lag_s.max():.0f} ms), counted from the one that it took in fastest"
    )


LOG_FILE, STEPS_FILE = "vllm.log", "steps.jsonl"


@dataclass(frozen=True)
class Job:
    """A scenario, and the folder that its runs go to."""

    scenario: Scenario
    folder: Path


def validate_engine(
    jobs: Sequence[Job],
    options: EngineOptions,
    how: ServerOptions,
    folder: Path,
    *,
    bounds: Bounds | None,
    told: Told,
) -> Iterator[Validation]:
    """Start vLLM's server, then for each scenario: simulate what vLLM resolved, send its workload, put both together.

    The server's log and steps go to `folder`; `how` has no address yet.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / LOG_FILE
    told.say(f"starting vLLM's server with {options.model} (its messages go to {log})")
    for warning in options.warnings:
        told.say(f"note: {warning}")
    wanted = options.with_extra(enable_prompt_tokens_details=True)  # prefix-cache hits of each request
    with ExitStack() as stack:
        running = stack.enter_context(started(wanted, folder / STEPS_FILE, log))
        server, tail = run_loop(attached(running.url, running.steps))
        stack.callback(tail.close)
        how = replace(how, url=running.url)
        facts = engine_of(tail.facts, options, "", options.seed)
        if facts.gpu == "cpu":
            run_loop(_warm_up(server, facts, int(tail.facts["vocab_size"]), told))
        for job in jobs:
            resolved = resolve(as_resolved(job.scenario, facts, tail.facts["settings"]))
            setting = {"scenario": resolved.dump(), "engine": facts.model_dump(mode="json")}
            runs = ServerRuns(server, resolved, requests_of(job.scenario), how, KeptRuns(job.folder), told, tail)
            source = {"mode": "engine", **_said(facts), "temperature": how.temperature}
            yield runs.validation(setting, source, bounds, _mismatches(resolved, facts))


async def _warm_up(server: Server, facts: EngineFacts, vocab_size: int, told: Told) -> None:
    """On a CPU, where every new size of step costs a primitive: a server that has run for a while has met them all."""
    told.say("warming up")
    driver = Driver(server.endpoint, server.model)
    try:
        await MeasuringSession(driver, facts, vocab_size, 0, Spans()).warm_up(lambda *_: None)
    finally:
        driver.close()


def _said(facts: EngineFacts) -> dict[str, Any]:
    """What validation.json says of the engine, without this machine's paths."""
    content = facts.model_dump(mode="json", exclude={"architecture", "format", "command", "warnings"})
    return {**content, "model": Path(facts.model).name if Path(facts.model).is_dir() else facts.model}


def _mismatches(resolved: Resolved, facts: EngineFacts) -> list[str]:
    """In what the profile is of something else than this engine."""
    profile = resolved.profile
    if not isinstance(profile, MeasuredProfile):
        return ["the step times are written in the scenario, not measured"]
    pairs = {
        "model": (Path(profile.model).name, Path(facts.model).name),
        "quantisation": (profile.quantisation, facts.quantisation),
        "GPU": (profile.gpu, facts.gpu),
        "tensor_parallel_size": (profile.tensor_parallel_size, facts.tensor_parallel_size),
    }
    return [
        f"the profile is of {name} {theirs}, and the real engine has {ours}"
        for name, (theirs, ours) in pairs.items()
        if theirs != ours
    ]
