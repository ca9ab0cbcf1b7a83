"""One simulation, a scenario in and its results out; the modules here run many: cells, sweeps, rankings, upgrades."""

from __future__ import annotations

import copy
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from simbatch.sim.clock import to_ps
from simbatch.sim.cost.uncertainty import caveats, error_line
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.interpreter import few_collections
from simbatch.sim.metrics.columns import RunFacts, SloLimits
from simbatch.sim.plugins.policy import Policy
from simbatch.sim.scenario import resolve
from simbatch.sim.scenario.model import Scenario
from simbatch.sim.scenario.resolved import Resolved
from simbatch.sim.workload.chunk import PredictedSource, Predictor, unread_of
from simbatch.sim.workload.turns import turns_in

if TYPE_CHECKING:
    from simbatch.sim.engine import Member
    from simbatch.sim.engine.explain import Event
    from simbatch.sim.engine.listener import Listener
    from simbatch.sim.engine.record import RunRecord
    from simbatch.sim.report.result import Result
    from simbatch.sim.scenario.resolved import Fleet
    from simbatch.sim.workload.chunk import RequestSource


def simulate(
    scenario: Scenario,
    policy: Policy | str | None = None,
    *,
    predictor: Predictor | None = None,
    steps: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Result:
    """Run a scenario to its end.

    `policy` (an object, or a name as in YAML) takes the place of the scenario's; `predictor` is asked once a request
    for its output tokens, which the policy is shown; `steps` keeps every step; `progress` is told the number of ended
    requests now and then. Raises UserError for what the user must mend.
    """
    return run_resolved(resolve(scenario, policy, predictor), steps=steps, progress=progress)


def run_resolved(resolved: Resolved, *, steps: bool = False, progress: Callable[[int], None] | None = None) -> Result:
    """Run a scenario that has been looked up already, to its end."""
    import time

    from simbatch.sim.report.result import Result

    with _relocated(resolved.scenario):
        source = _requests(resolved)
        begin_s = time.perf_counter()
        with few_collections():
            record = _record(resolved, source, steps, progress)
    wall_s = time.perf_counter() - begin_s
    return Result(record, run_facts(resolved, record, source), wall_s)


@contextmanager
def _relocated(scenario: Scenario) -> Iterator[None]:
    """What is wrong with a scenario is told at its places."""
    try:
        yield
    except UserError as error:
        raise scenario.relocated(error) from error.__cause__
    except (OverflowError, struct.error):  # the engine's clock, or a column of its record
        rule = "the simulated time exceeds 106 days, which is all that the clock holds"
        mend = "simulate fewer requests, or take shorter step times"
        raise scenario.relocated(UserError(Problem("workload", rule, mend=mend))) from None


def _lone(resolved: Resolved, source: RequestSource) -> tuple[tuple[Any, Any, Any, Any], dict[str, Any]]:
    """What a run of one engine takes, its requests among it."""
    draws = {"noise": resolved.noise(), "host_noise": resolved.host_noise()}
    return (resolved.engine, resolved.cost_model(), resolved.policy, source), draws


def _record(
    resolved: Resolved, source: RequestSource, steps: bool, progress: Callable[[int], None] | None
) -> RunRecord:
    """One engine, or a cluster of them."""
    from simbatch.sim import engine

    if resolved.fleet is None:
        parts, draws = _lone(resolved, source)
        return engine.run(*parts, steps=steps, progress=progress, **draws)
    fleet, options = resolved.fleet, cluster_options(resolved)
    return engine.run_cluster(members_of(fleet), fleet.router, source, steps=steps, progress=progress, **options)


def cluster_options(resolved: Resolved) -> dict[str, Any]:
    """What a run of a cluster takes beside its members, router and requests."""
    from simbatch.sim.engine import Switch

    settings = resolved.scenario.cluster
    assert settings is not None
    events = []
    for event in settings.events:
        down_ps, up_ps = to_ps(event.at), to_ps(event.at + event.down_s)
        events += [Switch(at_ps, up, event.replica, event.drain) for at_ps, up in ((down_ps, False), (up_ps, True))]
    return {"seed": resolved.scenario.seed, "refresh_ps": to_ps(settings.router.refresh_s), "events": events}


def members_of(fleet: Fleet) -> list[Member]:
    """Every replica with its own policy and its own draws; those of replica 0 are a lone engine's."""
    from simbatch.sim.engine import Member

    members: list[Member] = []
    for number, group in enumerate(fleet.groups):
        one, cost = group.resolved, group.resolved.cost_model()
        for _ in range(group.replicas):
            i = len(members)
            policy, draws = copy.deepcopy(one.policy), (one.noise(i), one.host_noise(i))
            members.append(Member(one.engine, cost, policy, *draws, group=number, profile=one.profile.name))
    return members


def _requests(resolved: Resolved) -> RequestSource:
    """The scenario's requests, with what a predictor says of them."""
    from simbatch.sim.workload import open_workload

    scenario = resolved.scenario
    source = open_workload(scenario.workload, seed=scenario.seed, folder=scenario.folder)
    if (limits := scenario.slo.of_sessions()) and turns_in(source) is None:
        key, limit = next(iter(limits.items()))
        rule, mend = "is a limit on sessions, and the workload has none", "add workload.sessions, or leave it out"
        raise UserError(Problem(f"slo.{key}", rule, limit, mend))
    return source if resolved.predictor is None else PredictedSource(source, resolved.predictor)


def run_facts(resolved: Resolved, record: RunRecord, source: RequestSource) -> RunFacts:
    """What the results say beside the record."""
    from simbatch.sim.engine import front_end_of

    scenario, dump = resolved.scenario, resolved.dump()
    whole, resolved, policy_name = resolved, resolved.lead, resolved.policy_name
    engines = [resolved] if whole.fleet is None else [group.resolved for group in whole.fleet.groups]
    profile = resolved.profile
    return RunFacts(
        scenario_name=scenario.name,
        scenario=dump,
        policy=policy_name,
        policy_params=resolved.policy_parameters(),
        predicted_by=resolved.predicted_by,
        slo=SloLimits(**scenario.slo.model_dump()),
        seed=scenario.seed,
        engine=resolved.engine_settings(),
        engine_defaults=resolved.defaults,
        without_effect=resolved.without_effect,
        profile=profile.name,
        host_profile=resolved.host_profile,
        profile_asked_for=resolved.profile_asked_for,
        profile_source=getattr(profile, "source", None),
        profile_vllm_version=getattr(profile, "vllm_version", None),
        profile_error=error_line(profile),
        profile_is_estimate=profile.is_estimate,
        profile_caveats=caveats(profile),
        has_free_host=profile.has_free_host,
        share_in_range=_share_in_range(whole, record),
        skipped=source.skipped,
        unread=unread_of(source),
        has_host=any(one.engine.host is not None for one in engines),
        has_front_end=any(front_end_of(one.engine) is not None for one in engines),
        max_capture_size=resolved.engine.max_capture_size,
        vllm_notes=resolved.vllm_notes,
        policy_holds=resolved.policy.overrides("hold"),
        cluster=None if whole.fleet is None else whole.fleet.facts(whole.scenario),
    )


def _share_in_range(resolved: Resolved, record: RunRecord) -> float | None:
    """The share of steps inside what the profiles measured; None where the first one has no range."""
    fleet = resolved.fleet
    if (measured := resolved.lead.profile.measured) is None:
        return None
    if fleet is None or len(fleet.groups) == 1:
        return measured.share_inside(record.segments)
    inside = total = 0.0
    for part in record.replicas:
        rows = record.segments[part.rows]
        own, num_steps = fleet.groups[part.group].resolved.profile.measured, float(rows["num_steps"].sum())
        inside += num_steps * (1.0 if own is None else own.share_inside(rows))
        total += num_steps
    return inside / total if total else 1.0


def listen(resolved: Resolved, listener: Listener) -> None:
    """Do every step of a scenario, of which `listener` is told; it may end the run."""
    from simbatch.sim.engine import Run

    with _relocated(resolved.scenario):
        parts, draws = _lone(resolved, _requests(resolved))
        Run(*parts, **draws, listener=listener).env.run()


def explain_request(resolved: Resolved, request_id: str) -> list[Event]:
    """The life of one request of a scenario, event by event; UserError where there is none of that name."""
    with _relocated(resolved.scenario):
        events = _explained(resolved, _requests(resolved), request_id)
    if not events:
        rule = "no request of this name is ever sent"
        mend = "requests.parquet of `simbatch run` lists request_id; where the input has none it is the row, from 0"
        raise UserError(Problem("--request", rule, request_id, mend))
    return events


def _explained(resolved: Resolved, source: RequestSource, request_id: str) -> list[Event]:
    from simbatch.sim import engine

    if resolved.fleet is None:
        parts, draws = _lone(resolved, source)
        return engine.explain(*parts, request_id, **draws)
    return engine.explain_cluster(
        members_of(resolved.fleet), resolved.fleet.router, source, request_id, **cluster_options(resolved)
    )
