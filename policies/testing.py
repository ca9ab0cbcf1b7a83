"""The contract test: what no policy may break, tried on random engines and requests.

>>> from simbatch.policies.testing import check_policy
>>> check_policy("fixed", num_cases=5).num_cases
5
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.cost.model import CostModel
from simbatch.sim.engine import run
from simbatch.sim.engine.record import FINISHED, REJECTED, RunRecord
from simbatch.sim.plugins.policy import POLICIES, Policy
from simbatch.sim.plugins.testing import (
    BrokenRuleError,
    Checked,
    ListSource,
    Rule,
    TriedCase,
    check,
    determinism,
    in_sessions,
    random_config,
    random_cost,
    random_source,
    spans,
)
from simbatch.sim.scheduler.config import EngineConfig

TOLERANCE_S = 1e-9  # seconds are floats


@dataclass(frozen=True)
class EngineCase:
    """An engine and its requests."""

    config: EngineConfig
    cost: CostModel
    source: ListSource

    def run(self, policy: Policy, *, spans: bool = True) -> RunRecord:
        """Simulate it, every step kept."""
        return run(self.config, self.cost, policy, self.source, steps=True, spans=spans)


def random_engine(policy: Policy, seed: int) -> EngineCase:
    """Any engine that the policy may meet."""
    rng = random.Random(seed)
    config, cost = random_config(rng, policy), random_cost(rng)
    source = random_source(rng, config.max_model_len)
    return EngineCase(config, cost, in_sessions(source, seed) if seed % 4 == 3 else source)


Trial = TriedCase[EngineCase]


class PolicyError(BrokenRuleError):
    """A policy breaks a rule; says which, on which of the random cases, and how."""


def check_policy(
    policy: Policy | type[Policy] | str,
    *,
    num_cases: int = 100,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    **parameters: Any,
) -> Checked:
    """Run a policy (an object, a class, or a name as in YAML, with `parameters`) through random scenarios.

    Raises PolicyError at the first rule that it breaks. `seed` numbers the first case; a fault names the seed of its
    own.
    """
    made = POLICIES.made(policy, parameters)
    tried = partial(random_engine, made)
    skipped = _freedoms(made)
    return check(made, tried, RULES, PolicyError, skipped=skipped, num_cases=num_cases, seed=seed, progress=progress)


def _freedoms(policy: Policy) -> dict[str, str]:
    """Rules that a policy is free of, and why."""
    free = {}
    if policy.overrides("hold"):
        free["work conservation"] = "it holds requests for a fuller batch"
    if policy.starvation_bound_s() is None:
        free["starvation"] = "it states no bound"
    if policy.overrides("plan"):
        free["spans"] = "it plans every step"
    return free


def _conservation(trial: Trial) -> Iterator[str]:
    """Every request ends once, whole or with a reason; every block comes back."""
    record, requests = trial.record, trial.record.requests
    for i in np.flatnonzero((requests.status != FINISHED) & (requests.status != REJECTED)):
        yield f"request {i} never ends: nothing is scheduled any more"
    lengths = np.array([row[2] for row in trial.case.source.rows])
    if requests.row is not None:  # they are turns, in the order of sending
        lengths = lengths[requests.row]
    wanted = np.minimum(lengths, trial.case.config.max_model_len - requests.num_prompt_tokens)
    for i in np.flatnonzero((requests.status == FINISHED) & (requests.num_output_tokens != wanted)):
        yield f"request {i} ends with {requests.num_output_tokens[i]} tokens of {wanted[i]}"
    for i in np.flatnonzero(requests.status == REJECTED):
        if int(i) not in requests.reason:
            yield f"request {i} is turned away without a reason"
    if record.steps and record.steps[-1].free_blocks != trial.case.config.num_gpu_blocks - 1:
        yield f"at the end {record.steps[-1].free_blocks} of {trial.case.config.num_gpu_blocks - 1} blocks are free"


def _limits(trial: Trial) -> Iterator[str]:
    """Budget, seats and blocks hold; nobody is scheduled twice in a step, or preempted and scheduled."""
    config = trial.case.config
    for row in trial.record.steps or ():
        names = [name for name, _, _ in row.scheduled]
        if len(set(names)) != len(names) or set(names) & set(row.preempted):
            yield f"step {row.step} has a request twice"
        if sum(n for _, n, _ in row.scheduled) > config.max_num_batched_tokens:
            yield f"step {row.step} is over max_num_batched_tokens ({config.max_num_batched_tokens})"
        if max(len(names), row.num_running) > config.max_num_seqs:
            yield f"step {row.step} is over max_num_seqs ({config.max_num_seqs})"
        if not 0 <= row.free_blocks < config.num_gpu_blocks:
            yield f"step {row.step} leaves {row.free_blocks} blocks free"


def _causality(trial: Trial) -> Iterator[str]:
    """Arrival, first step, first token, end: in this order."""
    requests = trial.record.requests
    finished = requests.status == FINISHED
    times = np.stack([requests.arrival_ps, requests.scheduled_ps, requests.first_token_ps, requests.finish_ps])
    for i in np.flatnonzero(finished & (np.diff(times, axis=0) < 0).any(axis=0)):
        yield f"request {i}: arrival, first step, first token, end at {(times[:, i] / PS_PER_S).tolist()} s"


def _work_conservation(trial: Trial) -> Iterator[str]:
    """The device is never idle while a request that is served later is in the system, unless it waits for the host."""
    if trial.case.config.host is not None:
        return
    requests, steps = trial.record.requests, trial.record.steps or []
    served = requests.status == FINISHED
    arrival, finish = requests.arrival_ps[served], requests.finish_ps[served]
    ends = [0, *(row.end_ps for row in steps)]
    for end_ps, row in zip(ends, steps, strict=False):
        if row.start_ps > end_ps and ((arrival < row.start_ps) & (finish > end_ps)).any():
            yield f"the device is idle from {end_ps / PS_PER_S} to {row.start_ps / PS_PER_S} s while somebody waits"


def _starvation(trial: Trial) -> Iterator[str]:
    """Nobody is overtaken by who came later than the stated bound allows."""
    bound_s, requests = trial.made.starvation_bound_s(), trial.record.requests
    assert bound_s is not None
    started = np.flatnonzero(requests.scheduled_ps >= 0)
    order = started[np.argsort(requests.scheduled_ps[started], kind="stable")]
    newest_ps = pending_ps = 0  # latest arrival of those admitted in earlier steps; with those of this one
    for before, i in pairwise([None, *order]):
        if before is not None and requests.scheduled_ps[before] < requests.scheduled_ps[i]:
            newest_ps = pending_ps
        late_s = (newest_ps - int(requests.arrival_ps[i])) / PS_PER_S
        if late_s > bound_s + TOLERANCE_S:
            yield f"request {i} is overtaken by one that came {late_s:.3f} s later; the bound is {bound_s} s"
        pending_ps = max(pending_ps, int(requests.arrival_ps[i]))


RULES: dict[str, Rule[EngineCase]] = {
    "conservation": _conservation,
    "limits": _limits,
    "causality": _causality,
    "work conservation": _work_conservation,
    "starvation": _starvation,
    "determinism": determinism,
    "spans": spans,
}
