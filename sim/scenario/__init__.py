"""Scenario files: YAML with places, checked by pydantic, resolved to what the engine runs with.

Resolving fills in the defaults of the scenario's vLLM and checks its start rules.

What several seeds are runs of is one rule for every command that asks for an interval. A seed draws arrivals, lengths,
shares, noise and predictions. Where none of these is drawn, all seeds are one run, and one is enough. A trace leaves
its traffic to no seed, whatever else is drawn; an interval for it needs other traffic of the same kind, so several runs
of it are of the trace resampled in blocks (`sim/workload/traces/resample.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

from simbatch.sim.cost.profile import MeasuredProfile, Profile
from simbatch.sim.cost.sections import Settled
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.plugins.policy import Policy
from simbatch.sim.scenario.engine import EngineSettings, PolicyChoice
from simbatch.sim.scenario.model import Scenario, SloSection
from simbatch.sim.scenario.policy import ERROR, asks, is_own, prediction_problems
from simbatch.sim.scenario.reading import parse_overrides
from simbatch.sim.scenario.resolved import Fleet, Resolved, ResolvedGroup, collect, file_anywhere, load_profiles
from simbatch.sim.scenario.rules import async_scheduling, batch_limits, capture_sizes, memory_share, start_problems
from simbatch.sim.scheduler.config import (
    Changes,
    EngineConfig,
    changes_in,
    default_of,
    lacks,
    unknown_settings,
)
from simbatch.sim.workload.chunk import Predictor
from simbatch.sim.workload.model import TrafficShape


def resolve(
    scenario: Scenario,
    policy: Policy | str | None = None,
    predictor: Predictor | None = None,
    changes: Changes | None = None,
) -> Resolved:
    """Look everything up and check it; `policy` takes the place of the scenario's, `predictor` that of its error.

    `changes` are in force instead of those of the scenario's version of vLLM (versions.py).

    Raises UserError with all problems of profile, policy and engine at their lines.
    """
    if isinstance(policy, str):
        scenario, policy = scenario.with_policy(policy), None
    collected: list[Problem] = []
    profile, host_profile = load_profiles(scenario, collected)
    chosen = policy or collect(collected, scenario.build_policy)
    engine = None
    if profile is not None:
        engine = collect(collected, partial(resolve_engine, scenario.engine, profile, scenario.seed, changes))
    foretold = False
    if chosen is not None:
        is_written = ERROR in scenario.policy.params if policy is None else is_own(policy)
        foretold = bool(asks(chosen) and collect(collected, partial(_is_foretold, scenario)))
        name = scenario.policy.name if policy is None else _class_name(chosen)
        batching = _batching(scenario, chosen)
        collected += _policy_problems(scenario, chosen, name, batching)
        collected += prediction_problems(chosen, name, predictor, foretold=foretold, is_written=is_written)
    if collected or profile is None or chosen is None or engine is None:
        raise scenario.relocated(UserError(*collected))
    engine = replace(engine, batching=batching)
    resolved = Resolved(scenario, profile, chosen, name, engine, host_profile, foretold, predictor)
    return resolved if scenario.cluster is None else replace(resolved, fleet=resolve_fleet(resolved, policy, predictor))


def _is_foretold(scenario: Scenario) -> bool:
    """Whether the scenario's trace has predictions; UserError where it cannot be opened."""
    from simbatch.sim.workload.traces import foretells

    trace = scenario.workload.trace
    return trace is not None and foretells(trace, scenario.folder)


def resolve_engine(
    settings: EngineSettings, profile: Profile, seed: int = 0, changes: Changes | None = None
) -> EngineConfig:
    """The engine's settings on this profile; UserError when vLLM would not start with them."""
    version = settings.simulated_version
    if changes is None:
        changes = changes_in(version)
    _check_noise(settings, profile)
    written = {name: getattr(settings, name) for name in settings.model_fields_set}
    if unknown := unknown_settings(written, changes, version):
        raise UserError(*unknown)
    block_size = settings.block_size or profile.default_block_size
    max_model_len = settings.max_model_len or profile.max_model_len
    max_num_seqs, max_num_batched_tokens = batch_limits(settings, profile, max_model_len, changes)
    same = {f.name for f in fields(EngineConfig)} & EngineSettings.model_fields.keys()
    limits = max_num_seqs, max_num_batched_tokens
    default_max, of_model = profile.default_max_capture_size, profile.capture_size_of_model
    sizes = capture_sizes(settings, *limits, default_max, changes, of_model=of_model)
    # asked also when overridden: vLLM measures its memory first and does not start without any
    computed_blocks = profile.num_gpu_blocks_for(
        memory_share(settings, profile, changes),
        settings.kv_cache_dtype,
        block_size,
        Settled(*limits, len(sizes), default_of("graph_memory", changes)),
    )
    num_gpu_blocks = settings.num_gpu_blocks_override or computed_blocks
    config = EngineConfig(
        **{
            **{name: getattr(settings, name) for name in same if not lacks(name, changes)},
            **{name: default_of(name, changes) for name in same if lacks(name, changes)},
            "max_num_seqs": max_num_seqs,
            "max_num_batched_tokens": max_num_batched_tokens,
            "max_model_len": max_model_len,
            "num_gpu_blocks": num_gpu_blocks,
            "block_size": block_size,
            "async_scheduling": async_scheduling(settings, profile, changes),
            "vllm_version": version,
            "changes": changes,
            "host": profile.host_times(),
            "front_end": profile.front_end_times() if settings.front_end else None,
            "max_capture_size": sizes[-1] if sizes else 0,
            "seed": seed,
        }
    )
    problems = list(start_problems(config))
    if problems:
        raise UserError(*problems)
    return config


def _check_noise(settings: EngineSettings, profile: Profile) -> None:
    if settings.step_noise and profile.noise is None:
        rule = f"the profile {profile.name} has no distribution of noise to draw from"
        raise UserError(Problem("engine.step_noise", rule, True, "remove it, or take a profile that has one"))


def _batching(scenario: Scenario, policy: Policy) -> str:
    """What the scenario says; where it leaves that open, what the policy supports, continuous before static."""
    given = scenario.engine
    if "batching" in given.model_fields_set or given.batching in policy.disciplines:
        return given.batching
    return policy.disciplines[0]


def _policy_problems(scenario: Scenario, policy: Policy, name: str, batching: str) -> list[Problem]:
    """Settings that this policy does not go with."""
    problems = []
    order = scenario.engine.scheduling_policy
    if batching not in policy.disciplines:
        rule = f"policy {name} does not support {batching} batching, only {' and '.join(policy.disciplines)}"
        problems.append(Problem("engine.batching", rule, batching, "take another policy: see `simbatch policies`"))
    if order == "priority" and name != "vllm":
        rule = f"policy {name} owns the order of the queue, which vLLM's --scheduling-policy priority would set too"
        problems.append(Problem("engine.scheduling_policy", rule, order, "remove it, or set policy: {name: vllm}"))
    return problems


def _class_name(policy: Policy) -> str:
    kind = type(policy)
    return f"{kind.__module__}:{kind.__qualname__}"


def resolve_fleet(resolved: Resolved, policy: Policy | None, predictor: Predictor | None) -> Fleet:
    """The scenario's cluster, each group with an engine of its own."""
    scenario = resolved.scenario
    settings = scenario.cluster
    assert settings is not None
    collected: list[Problem] = [*settings.event_problems()]
    router = collect(collected, scenario.build_router)
    if settings.groups is None:
        groups = [ResolvedGroup(resolved, settings.replicas or 1)]
    else:
        found = [
            collect(collected, partial(_resolve_group, scenario, i, policy, predictor))
            for i in range(len(settings.groups))
        ]
        groups = [
            ResolvedGroup(one, group.replicas)
            for one, group in zip(found, settings.groups, strict=True)
            if one is not None
        ]
        collected += _mixed_problems([group.resolved for group in groups])
    if collected or router is None:
        raise scenario.relocated(UserError(*collected))
    return Fleet(tuple(groups), router, file_anywhere(scenario, settings.router.name))


def _resolve_group(scenario: Scenario, index: int, policy: Policy | None, predictor: Predictor | None) -> Resolved:
    """One group of a cluster as a scenario of one engine."""
    assert scenario.cluster is not None
    assert scenario.cluster.groups is not None
    group = scenario.cluster.groups[index]
    engine = group.engine.model_dump(mode="json", include=group.engine.model_fields_set)
    changes: dict[str, Any] = {f"engine.{key}": value for key, value in engine.items()}
    if group.profile is not None:
        changes["profile"] = group.profile
    place = scenario.locate(("cluster", "groups", index))
    return resolve(scenario.of_one_engine(changes, place), policy, predictor)


def _mixed_problems(groups: list[Resolved]) -> Iterator[Problem]:
    """What groups of one cluster may not differ in."""
    models = {i: group.profile.model for i, group in enumerate(groups) if isinstance(group.profile, MeasuredProfile)}
    first = next(iter(models.values()), None)
    for i, model in models.items():
        if model != first:
            rule = f"all groups must serve one model, and the first one that names any serves {first}"
            yield Problem(f"cluster.groups[{i}].profile", rule, model, "take a profile of that model")
    for i, group in enumerate(groups):
        if group.engine.block_size != groups[0].engine.block_size:
            rule = f"all groups must have one block_size, and the first one has {groups[0].engine.block_size}"
            mend = "set engine.block_size for all of them"
            yield Problem(f"cluster.groups[{i}].engine.block_size", rule, group.engine.block_size, mend)


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


__all__ = ["PolicyChoice", "Resolved", "Scenario", "SloSection", "parse_overrides", "resolve"]
