"""Real runs on vLLM's engine beside their simulation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from simbatch.profiler.fitting.samples import EngineFacts
from simbatch.profiler.measuring.session import Session
from simbatch.profiler.measuring.vllm_engine import EngineOptions, VllmEngine
from simbatch.profiler.validating.bounds import Bounds
from simbatch.profiler.validating.kept import Kept
from simbatch.profiler.validating.real_run import Run, simulated_run
from simbatch.profiler.validating.replay import Replay
from simbatch.profiler.validating.requests import Requests, prompts
from simbatch.profiler.validating.settings import as_resolved
from simbatch.profiler.validating.simulated import simulate_requests
from simbatch.profiler.validating.validation import Validation
from simbatch.sim.clock import PS_PER_MS, to_s
from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.errors import UserError
from simbatch.sim.results.metrics import duration_ps
from simbatch.sim.scenario import Resolved, Scenario, resolve
from simbatch.sim.workload import open_workload

LOG_FILE = "vllm.log"
Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Told:
    """Who is told what happens: `say` gets a line, `warm_up` how many sizes are done and of how many.

    `progress` makes what is told of each run's number, ended requests and time (s), from the number of runs, of
    requests, and how long a run should last (s).
    """

    say: Callable[[str], None]
    warm_up: Callable[[int, int], None]
    progress: Callable[[int, int, float], Progress]


def validate_engine(
    scenario: Scenario,
    options: EngineOptions,
    folder: Path,
    *,
    repeats: int,
    resume: bool,
    bounds: Bounds | None,
    told: Told,
) -> Validation:
    """Start vLLM, simulate what it resolved, replay the workload `repeats` times; whole runs stay in `folder`."""
    requests = _requests_of(scenario)
    folder.mkdir(parents=True, exist_ok=True)
    options = replace(options, log=folder / LOG_FILE)
    told.say(f"starting vLLM with {options.model} (its messages go to {options.log})")
    for warning in options.warnings:
        told.say(f"note: {warning}")
    engine = VllmEngine(options)
    try:
        resolved = _resolved(scenario, engine)
        simulated = simulated_run(simulate_requests(resolved, requests))
        kept = Kept(folder)
        setting = {"scenario": resolved.dump(), "engine": engine.facts.model_dump(mode="json")}
        num_kept = min(kept.begin(setting, resume=resume), repeats)
        real = [kept.read(number, resolved.engine, simulated.facts) for number in range(1, num_kept + 1)]
        if num_kept:
            told.say(f"{num_kept} runs are there already")
        if num_kept < repeats:
            real += _replay(engine, resolved, requests, simulated, kept, range(num_kept + 1, repeats + 1), told)
    finally:
        engine.close()
    source = {"mode": "engine", **_said(engine.facts)}
    notes = tuple(_mismatches(resolved, engine.facts))
    admission_ms = _admission_ms(real, resolved)
    return Validation(real, simulated, resolved.cost_model(), source, notes, bounds, admission_ms)


def _replay(
    engine: VllmEngine,
    resolved: Resolved,
    requests: Requests,
    simulated: Run,
    kept: Kept,
    numbers: range,
    told: Told,
) -> list[Run]:
    """Warm up, then run after run, each written when it has ended."""
    tokens = prompts(requests, engine.vocab_size, resolved.scenario.seed)
    policy = None if resolved.scenario.policy.name == "vllm" else resolved.policy
    if policy is not None:
        engine.guide(None)  # it would hold back what the warm-up must visit
    told.say("warming up")
    Session(engine, resolved.scenario.seed, lambda _: None).warm_up(told.warm_up)
    run_s = to_s(duration_ps(simulated.record))
    tell = told.progress(numbers[-1], len(requests), run_s)
    runs = []
    for number in numbers:
        engine.reset_prefix_cache()
        replay = Replay(engine, resolved.engine, requests, tokens, tell=partial(tell, number), policy=policy)
        runs.append(replay.run(simulated.facts))
        kept.write(number, runs[-1])
    return runs


def _requests_of(scenario: Scenario) -> Requests:
    try:
        return Requests.of(open_workload(scenario.workload, seed=scenario.seed, folder=scenario.folder))
    except UserError as error:
        raise scenario.relocated(error) from error.__cause__


def _resolved(scenario: Scenario, engine: VllmEngine) -> Resolved:
    """The scenario on this engine, with no client between: requests are handed over in its own process."""
    resolved = resolve(as_resolved(scenario, engine.facts, engine.settings))
    return replace(resolved, engine=replace(resolved.engine, front_end=None))


def _admission_ms(real: Sequence[Run], resolved: Resolved) -> dict[str, float] | None:
    """What taking a request in took, and what the profile says of it."""
    took_s = [took_s for run in real for took_s in run.admission_s if took_s is not None]
    profile_ms = (resolved.engine.host.admit_base_ps if resolved.engine.host else 0) / PS_PER_MS
    return {"real": 1000 * fmean(took_s), "profile": profile_ms} if took_s else None


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
