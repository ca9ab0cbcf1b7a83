"""The requests of a recorded run, and those of the scenario: which of the two are simulated, and whether they agree.

Settings: the scenario's go to vLLM, and what vLLM resolved goes to the simulation, so that one engine is on both sides.
A setting that the scenario names and the real engine does not have is an error; what it leaves open is the engine's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from simbatch.profiler.records import Requests
from simbatch.profiler.records.recorded import Floats, Recorded
from simbatch.profiler.records.samples import EngineFacts
from simbatch.profiler.server.start import EngineOptions
from simbatch.serving.options import SCHEDULER_CLASS, PolicyOptions, refuse_undoable
from simbatch.sim.clock import PS_PER_S, to_ps
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.report.result import Result
from simbatch.sim.scenario import Resolved, Scenario
from simbatch.sim.scenario.engine import OURS, EngineSettings
from simbatch.sim.scheduler.config import parse_version
from simbatch.sim.search import run_facts
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
    from simbatch.sim import engine

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


NOT_TOLD = {*OURS, "vllm_version"}  # to the server: its version is what it is
OF_THE_FRONT_END = {"api_server_count", "max_num_queued_reqs", "max_num_queued_tokens"}  # the engine has none of them
NOT_ASKED = {*NOT_TOLD, *OF_THE_FRONT_END, "gpu_memory_utilization", "kv_cache_dtype", "num_gpu_blocks_override"}


def written(scenario: Scenario) -> dict[str, Any]:
    """The engine settings that the user wrote."""
    settings = scenario.engine
    given = {key: getattr(settings, key) for key in EngineSettings.model_fields if key in settings.model_fields_set}
    return {key: value for key, value in given.items() if value is not None}


def check_can_run(scenario: Scenario) -> None:
    """UserError for what simbatch does not run inside the real engine."""
    problems = []
    if scenario.engine.batching != "continuous":
        rule = "vLLM's engine batches continuously"
        problems.append(Problem(scenario.locate(("engine", "batching")), rule, "static", "remove it"))
    try:
        refuse_undoable(scenario.build_policy(), "policy.name", scenario.policy.name)
    except UserError as error:
        problems += scenario.relocated(error).problems
    if problems:
        raise UserError(*problems)


def policy_arguments(scenario: Scenario) -> dict[str, Any]:
    """The engine arguments that run the scenario's policy in vLLM; none for vLLM's own scheduler."""
    if scenario.policy.name == "vllm":
        return {}
    folder = scenario.folder.absolute()
    options = PolicyOptions(scenario.policy.name, scenario.policy.params, scenario.profile, scenario.seed, folder)
    return {"scheduler_cls": SCHEDULER_CLASS, "additional_config": options.additional_config()}


def engine_options(
    scenario: Scenario,
    model: str,
    *,
    quantization: str | None = None,
    tensor_parallel_size: int | None = None,
    extra: Mapping[str, Any] | None = None,
) -> EngineOptions:
    """What vLLM is started with."""
    settings = {key: value for key, value in written(scenario).items() if key not in NOT_TOLD}
    twice = [key for key in extra or {} if key in EngineSettings.model_fields]
    if twice:
        mend = f"write --set engine.{twice[0]}=..., which the simulation heeds too"
        raise UserError(Problem(f"--engine-arg {twice[0]}", "is a setting of the scenario", mend=mend))
    ours = policy_arguments(scenario)
    if taken := sorted(ours.keys() & (extra or {}).keys()):
        rule = f"is how vLLM is told of the policy {scenario.policy.name}"
        raise UserError(Problem(f"--engine-arg {taken[0]}", rule, mend="leave it out"))
    own = EngineOptions.__dataclass_fields__.keys()
    named = {key: value for key, value in settings.items() if key in own}
    others = {key: value for key, value in settings.items() if key not in own}
    return EngineOptions(
        model,
        quantization=quantization,
        tensor_parallel_size=tensor_parallel_size,
        **named,
        extra={**others, **ours, **(extra or {})},
    )


def as_resolved(scenario: Scenario, facts: EngineFacts, settings: Mapping[str, Any]) -> Scenario:
    """The scenario on the engine that vLLM made of it; UserError where that is another one than the user wrote."""
    names = [key for key in EngineSettings.model_fields if key not in NOT_ASKED]
    resolved = {key: settings[key] for key in names if key in settings}
    resolved |= {key: getattr(facts, key) for key in names if hasattr(facts, key)}
    resolved["num_gpu_blocks_override"] = facts.num_gpu_blocks
    given = written(scenario)
    version = given.get("vllm_version")
    is_same = version is not None and parse_version(version) == parse_version(facts.vllm_version)
    resolved["vllm_version"] = version if is_same else facts.vllm_version
    problems = []
    if given.get("kv_cache_dtype", "auto") not in ("auto", facts.kv_cache_dtype):
        rule = f"the real engine has {facts.kv_cache_dtype}"
        problems.append(Problem(scenario.locate(("engine", "kv_cache_dtype")), rule, given["kv_cache_dtype"]))
    return agreed(scenario, resolved, "--engine", problems)


def agreed(scenario: Scenario, real: Mapping[str, Any], origin: str, problems: Sequence[Problem] = ()) -> Scenario:
    """The scenario with what the real engine has wherever it leaves that open; UserError where it says otherwise.

    `real` has settings by their names there, `origin` says where they come from; `problems` are known before.
    """
    given = written(scenario)
    found = [
        Problem(
            scenario.locate(("engine", key)),
            f"the real engine has {_plain(real[key])}",
            value,
            f"write {key}: {_plain(real[key])}, or leave it out",
        )
        for key, value in given.items()
        if key in real and real[key] != value
    ]
    if found or problems:
        raise UserError(*found, *problems)
    added = {f"engine.{key}": value for key, value in real.items() if value is not None and key not in given}
    return scenario.override(added, origin=origin)


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
