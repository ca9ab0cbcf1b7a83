"""What `vllm serve --additional-config '{"simbatch": {...}}'` says of a policy for real vLLM, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.cost.model import CostModel
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.plugins.policy import Policy
from simbatch.sim.scenario.policy import build_policy
from simbatch.sim.scenario.reading import Source

SCHEDULER_CLASS = "simbatch.vllm_scheduler.PolicyScheduler"
PLACE = "--additional-config simbatch"
KEYS = ("policy", "profile", "seed", "folder")
EXAMPLE = """--additional-config '{"simbatch": {"policy": {"name": "adaptive", "target_tpot_ms": 40}}}'"""
UNDOABLE = {  # what vLLM's scheduler cannot be told from outside
    "plan": "plans whole steps (plan)",
    "hold": "lets an idle engine wait for a fuller batch (hold)",
}


@dataclass(frozen=True)
class PolicyOptions:
    """A policy by name with its parameters, and what it may ask for: a profile's step times, lengths drawn by a seed.

    `folder` is where files that are named (`file.py:Class`, a profile) are looked for first.
    """

    name: str
    params: Mapping[str, Any]
    profile: str | Mapping[str, Any] | None = None
    seed: int = 0
    folder: Path = Path()

    @classmethod
    def of(cls, additional_config: object, other_keys: Sequence[str] = ()) -> Self:
        """From vLLM's `additional_config`, where `other_keys` may be too; UserError for what is missing or unknown."""
        given = additional_config.get("simbatch") if isinstance(additional_config, Mapping) else None
        if not isinstance(given, Mapping) or "policy" not in given:
            raise UserError(Problem(PLACE, "must name the policy to serve with", given, f"write {EXAMPLE}"))
        for key in given:
            if key not in (*KEYS, *other_keys):
                near = get_close_matches(str(key), KEYS, n=1)
                mend = f"did you mean {near[0]}?" if near else f"there are {', '.join(KEYS)}"
                raise UserError(Problem(f"{PLACE}.{key}", "unknown key", given[key], mend))
        policy, seed = given["policy"], given.get("seed", 0)
        if not isinstance(policy, Mapping) or not isinstance(policy.get("name"), str):
            raise UserError(Problem(f"{PLACE}.policy", "must be a mapping with a name", policy, f"write {EXAMPLE}"))
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise UserError(Problem(f"{PLACE}.seed", "must be a whole number from 0 on", seed, "the scenario's seed"))
        params = {key: value for key, value in policy.items() if key != "name"}
        return cls(policy["name"], params, given.get("profile"), seed, Path(given.get("folder", "")))

    def additional_config(self) -> dict[str, Any]:
        """What vLLM takes as `additional_config` to read these options again."""
        policy = {"name": self.name, **self.params}
        given = {"policy": policy, "profile": self.profile, "seed": self.seed, "folder": str(self.folder.absolute())}
        return {"simbatch": {key: value for key, value in given.items() if value is not None}}

    def build(self) -> Policy:
        """A fresh policy; UserError at a name or parameter that does not exist, and for what vLLM cannot do."""
        data: dict[Any, Any] = {"policy": {"name": self.name, **self.params}}
        source = Source(PLACE, self.folder, PLACE, data, {})
        try:
            policy = build_policy(self.name, dict(self.params), source)
        except UserError as error:
            raise UserError(*map(source.relocated, error.problems)) from error.__cause__
        refuse_undoable(policy, f"{PLACE} policy.name", self.name)
        return policy

    def cost_model(self, capture_sizes: Sequence[int] = ()) -> CostModel | None:
        """The step times of the profile; UserError when it cannot be read, None when none is named."""
        if self.profile is None:
            return None
        try:
            return load_profile(self.profile, folder=self.folder).cost_model(capture_sizes)
        except UserError as error:
            raise UserError(*(replace(p, place=f"{PLACE} {p.place}") for p in error.problems)) from error.__cause__


def refuse_undoable(policy: Policy, place: str, name: str) -> None:
    """UserError for a policy that takes decisions which vLLM's scheduler does not leave to anybody."""
    said = [words for method, words in UNDOABLE.items() if hasattr(Policy, method) and policy.overrides(method)]
    if said:
        rule = f"runs in simulation alone, since it {' and '.join(said)}, and vLLM's scheduler cannot be told that"
        raise UserError(Problem(place, rule, name, "express it with order, seats, token_budget and victim"))
    if "continuous" not in policy.disciplines:
        raise UserError(Problem(place, "batches statically, and vLLM's engine continuously", name))
