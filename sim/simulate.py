"""A scenario in, its results out."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from simbatch.policies.base import Policy
from simbatch.sim.cost.trust import caveats, error_line
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.results.facts import RunFacts, Slo
from simbatch.sim.scenario.model import Scenario
from simbatch.sim.scenario.resolve import Resolved, resolve
from simbatch.sim.workload.predicted import PredictedSource, Predictor

if TYPE_CHECKING:
    from simbatch.sim.engine.explain import Event
    from simbatch.sim.engine.record import RunRecord
    from simbatch.sim.results import Result
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
    """The same for a scenario that has been looked up already."""
    import time

    from simbatch.sim import engine
    from simbatch.sim.results import Result

    scenario = resolved.scenario
    try:
        source = _requests(resolved)
        cost = resolved.cost_model()
        begin_s = time.perf_counter()
        record = engine.run(
            resolved.engine,
            cost,
            resolved.policy,
            source,
            steps=steps,
            progress=progress,
            noise=resolved.noise(),
            host_noise=resolved.host_noise(),
        )
    except UserError as error:
        raise scenario.relocated(error) from error.__cause__
    except (OverflowError, struct.error):  # the engine's clock, or a column of its record
        rule = "the simulated time exceeds 106 days, which is all that the clock holds"
        mend = "simulate fewer requests, or take shorter step times"
        raise scenario.relocated(UserError(Problem("workload", rule, mend=mend))) from None
    wall_s = time.perf_counter() - begin_s
    return Result(record, run_facts(resolved, record, source), wall_s)


def _requests(resolved: Resolved) -> RequestSource:
    """The scenario's requests, with what a predictor says of them."""
    from simbatch.sim.workload import open_workload

    scenario = resolved.scenario
    source = open_workload(scenario.workload, seed=scenario.seed, folder=scenario.folder)
    return source if resolved.predictor is None else PredictedSource(source, resolved.predictor)


def run_facts(resolved: Resolved, record: RunRecord, source: RequestSource) -> RunFacts:
    """What the results say beside the record."""
    from simbatch.sim.engine import front_end_of

    scenario, profile = resolved.scenario, resolved.profile
    measured = profile.measured
    return RunFacts(
        scenario_name=scenario.name,
        scenario=resolved.dump(),
        policy=resolved.policy_name,
        policy_params=resolved.policy_parameters(),
        predicted_by=resolved.predicted_by,
        slo=Slo(**scenario.slo.model_dump()),
        seed=scenario.seed,
        engine=resolved.engine_settings(),
        engine_defaults=resolved.defaults,
        without_effect=resolved.without_effect,
        profile=profile.name,
        host_profile=resolved.host_profile,
        profile_asked_for=resolved.profile_asked_for,
        profile_source=getattr(profile, "source", None),
        profile_error=error_line(profile),
        profile_is_estimate=profile.is_estimate,
        profile_caveats=caveats(profile),
        has_free_host=profile.has_free_host,
        share_in_range=None if measured is None else measured.share_inside(record.segments),
        skipped=source.skipped,
        has_host=resolved.engine.host is not None,
        has_front_end=front_end_of(resolved.engine) is not None,
        max_capture_size=resolved.engine.max_capture_size,
        policy_holds=resolved.policy.overrides("hold"),
    )


def explain_request(resolved: Resolved, request_id: str) -> list[Event]:
    """The life of one request of a scenario, event by event; UserError where there is none of that name."""
    from simbatch.sim import engine

    scenario = resolved.scenario
    try:
        source = _requests(resolved)
        events = engine.explain(
            resolved.engine,
            resolved.cost_model(),
            resolved.policy,
            source,
            request_id,
            noise=resolved.noise(),
            host_noise=resolved.host_noise(),
        )
    except UserError as error:
        raise scenario.relocated(error) from error.__cause__
    if not events:
        rule = "no request of this name is ever sent"
        mend = "requests.parquet of `simbatch run` lists request_id; where the input has none it is the row, from 0"
        raise UserError(Problem("--request", rule, request_id, mend))
    return events
