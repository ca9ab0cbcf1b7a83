"""Scenarios in which a policy's source is retold: profiles that ship, workloads near the paper's, scaled down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simbatch import Result, Scenario, simulate
from simbatch.sim.plugins.policy import POLICIES

Lengths = dict[str, Any]


def lognormal(mean: float, cv: float, longest: int) -> Lengths:
    return {"distribution": "lognormal", "mean": mean, "cv": cv, "max": longest}


def uniform(low: int, high: int) -> Lengths:
    return {"distribution": "uniform", "min": low, "max": high}


# openchat_sharegpt4, the conversations of Sarathi-Serve's evaluation (table 2), as far as a lognormal tells them
CONVERSATIONS = {"prompt_len": lognormal(1730, 0.9, 8000), "output_len": lognormal(415, 0.5, 2000)}


def serving(
    profile: str, num_prompts: int, rate: float | None, *, seed: int = 0, engine: Any = None, **workload: Any
) -> Scenario:
    """`num_prompts` requests at `rate` a second, or all at once without one."""
    arrival = {"arrival": {"process": "all_at_once"}} if rate is None else {"request_rate": rate}
    return Scenario.from_dict(
        {
            "profile": profile,
            "engine": engine or {},
            "workload": {"num_prompts": num_prompts, **arrival, **workload},
            "seed": seed,
        }
    )


def under(scenario: Scenario, policy: str, **parameters: Any) -> Result:
    """The scenario under a policy that ships."""
    return simulate(scenario, POLICIES.load(policy, parameters, folder=Path()))
