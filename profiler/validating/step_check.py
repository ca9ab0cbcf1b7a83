"""Where an error comes from: the steps that the real engine did, beside what the profile says that each of them takes.

When the profile is right about the steps, an error left is the simulated scheduler's or the host's; when it is not, the
machine has drifted since it was measured, or the profile does not fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simbatch.profiler.validating.real_run import Run, features
from simbatch.sim.clock import PS_PER_MS
from simbatch.sim.cost.features import step_ps
from simbatch.sim.cost.model import CostModel


def step_figures(runs: Sequence[Run], cost: CostModel) -> list[dict[str, Any]]:
    """Per regime: how many steps, what they took on average and what the profile says of them, ms."""
    found: dict[str, list[tuple[int, int]]] = {"decode-only": [], "with prefills": []}
    for run in runs:
        for step in run.record.steps or ():
            of_step = features(step, run.record.requests.num_prompt_tokens)
            if step.scheduled:
                regime = "with prefills" if of_step.prefill_tokens else "decode-only"
                found[regime].append((step.end_ps - step.start_ps, step_ps(cost, of_step)))
    found["between two steps"] = [(gap_ps, 0) for run in runs for gap_ps in _between(run)]
    return [_row(regime, np.array(pairs, dtype=np.float64)) for regime, pairs in found.items() if pairs]


def _between(run: Run) -> Iterator[int]:
    """What passes from the end of a step to the next one's start (ps), nobody being taken in and work being there."""
    taken_in_ps = np.sort(run.taken_in_ps) if run.taken_in_ps is not None else np.zeros(0)
    for step, following in pairwise(run.record.steps or ()):
        first, last = np.searchsorted(taken_in_ps, (step.end_ps, following.start_ps))
        if first == last and step.num_running + step.num_waiting:
            yield following.start_ps - step.end_ps


def _row(regime: str, pairs: NDArray[np.float64]) -> dict[str, Any]:
    real_ms, profile_ms = pairs.mean(axis=0) / PS_PER_MS
    error = float(profile_ms / real_ms - 1) if profile_ms else None
    figures = {"real_ms": float(real_ms), "profile_ms": float(profile_ms), "error": error}
    return {"regime": regime, "num_steps": len(pairs), **figures}
