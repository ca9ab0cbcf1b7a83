"""The simulation of requests that are in memory already."""

from __future__ import annotations

from simbatch.profiler.validating.requests import Requests
from simbatch.sim import engine
from simbatch.sim.errors import UserError
from simbatch.sim.results import Result
from simbatch.sim.scenario import Resolved
from simbatch.sim.search.simulate import run_facts


def simulate_requests(resolved: Resolved, requests: Requests) -> Result:
    """As `simbatch run` would, every step kept."""
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
