"""A recorded run beside its simulation."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from simbatch.profiler.validating.bounds import Bounds
from simbatch.profiler.validating.matching import RECORDED, SCENARIO, matched
from simbatch.profiler.validating.real_run import Run, simulated_run
from simbatch.profiler.validating.recorded import read_recorded
from simbatch.profiler.validating.requests import Requests
from simbatch.profiler.validating.simulated import simulate_requests
from simbatch.profiler.validating.validation import Validation
from simbatch.sim.clock import PS_PER_S
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.scenario import Resolved
from simbatch.sim.workload import open_workload

NO_ENGINE_CLOCK = "the file does not say when the engine took requests in: the client's clock alone is compared"

CLOSED_LOOP = (
    "the file says max_concurrency {:,}, a closed loop: how fast the server was decided when requests were sent. Here "
    "they are sent at the recorded times, so throughput and duration of this run say nothing"
)


def validate_recorded(resolved: Resolved, file: Path, source: str | None, bounds: Bounds | None) -> Validation:
    """`source` says whose arrivals and lengths are simulated, `scenario` or `recorded`.

    None: the scenario's when its workload is a trace, else the file's. Raises UserError when the file is malformed or
    does not have the scenario's requests.
    """
    scenario, recorded = resolved.scenario, read_recorded(file)
    if scenario.workload.max_concurrency is not None:
        rule = "a recorded run was sent at the times in it, and the scenario holds requests back"
        raise UserError(Problem(scenario.locate(("workload", "max_concurrency")), rule, mend="remove it"))
    has_trace = scenario.workload.trace is not None
    own = None
    if has_trace or source == SCENARIO:
        try:
            own = Requests.of(open_workload(scenario.workload, seed=scenario.seed, folder=scenario.folder))
        except UserError as error:
            raise scenario.relocated(error) from error.__cause__
    both = matched(recorded, own, source or (SCENARIO if has_trace else RECORDED))
    simulated = simulated_run(simulate_requests(resolved, both.requests))
    notes = list(both.notes)
    if recorded.max_concurrency is not None:
        notes.append(CLOSED_LOOP.format(recorded.max_concurrency))
    taken_in_ps = None
    if both.recorded.taken_in_s is None:
        notes.append(NO_ENGINE_CLOCK)
    else:
        taken_in_ps = np.round((both.recorded.taken_in_s + both.start_s) * PS_PER_S).astype(np.int64)
        notes.append(_clocks_note(both.recorded.taken_in_s - both.recorded.sent_s))
    real = Run(both.recorded.record(both.start_s, resolved.engine), simulated.facts, taken_in_ps)
    source_facts = {"mode": "recorded", "file": file.name, "kind": both.recorded.kind}
    return Validation([real], simulated, resolved.cost_model(), source_facts, tuple(notes), bounds)


def _clocks_note(lag_s: np.ndarray[tuple[int], np.dtype[np.float64]]) -> str:
    return (
        f"the engine took requests in {1000 * lag_s.mean():.0f} ms after their send on average (at most "
        f"{1000 * lag_s.max():.0f} ms), counted from the one that it took in fastest"
    )
