"""Scenarios on a vLLM server of our own, started once for all of them, beside their simulation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simbatch.profiler.profile.run import engine_of
from simbatch.profiler.profile.session import MeasuringSession, Spans
from simbatch.profiler.records.samples import EngineFacts
from simbatch.profiler.server.client import Driver
from simbatch.profiler.server.http import Endpoint, run_loop
from simbatch.profiler.server.result import KeptRuns
from simbatch.profiler.server.server import Server, Tail, look
from simbatch.profiler.server.start import EngineOptions, started
from simbatch.profiler.validate.matching import as_resolved, requests_of
from simbatch.profiler.validate.on_server import ServerOptions, ServerRuns, Told
from simbatch.profiler.validate.validation import Bounds, Validation
from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.scenario import Resolved, Scenario, resolve

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
        tail = Tail(running.steps)
        stack.callback(tail.close)
        how = replace(how, url=running.url)
        server = run_loop(look(Endpoint.of(running.url), None))
        run_loop(tail.settled())
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
