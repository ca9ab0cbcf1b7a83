"""Where an error comes from: the steps that the real engine did, beside what the profile says that each of them takes.

When the profile is right about the steps, an error left is the simulated scheduler's, the host's or the front end's;
when it is not, the machine has drifted since it was measured, or the profile does not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simbatch.profiler.fitting.durations import durations_s
from simbatch.profiler.validating.real_run import Run
from simbatch.profiler.validating.with_steps import features
from simbatch.sim.clock import PS_PER_MS, PS_PER_S
from simbatch.sim.cost.model import CostModel, step_ps


def step_figures(runs: Sequence[Run], cost: CostModel) -> list[dict[str, Any]]:
    """Per regime: how many steps, what they took on average and what the profile says of them, ms."""
    found: dict[str, list[tuple[float, int]]] = {"decode-only": [], "with prefills": []}
    for run in runs:
        for step, took_s in durations_s(run.lines):
            pair = took_s * PS_PER_S, step_ps(cost, features(step))
            found["with prefills" if step.prefills else "decode-only"].append(pair)
    return [_row(regime, np.array(pairs, dtype=np.float64)) for regime, pairs in found.items() if pairs]


def _row(regime: str, pairs: NDArray[np.float64]) -> dict[str, Any]:
    real_ms, profile_ms = pairs.mean(axis=0) / PS_PER_MS
    figures = {"real_ms": float(real_ms), "profile_ms": float(profile_ms), "error": float(profile_ms / real_ms - 1)}
    return {"regime": regime, "num_steps": len(pairs), **figures}
