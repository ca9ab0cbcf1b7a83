"""A scenario's cluster with everything looked up: each group's engine, and the router."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simbatch.policies.base import Policy
from simbatch.routers.base import Router
from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.scenario.model import Scenario
from simbatch.sim.scenario.profiles import collect
from simbatch.sim.workload.chunk import Predictor

if TYPE_CHECKING:
    from simbatch.sim.scenario.resolve import Resolved


@dataclass(frozen=True)
class ResolvedGroup:
    """So many engines, all of which are this one."""

    resolved: Resolved
    replicas: int


@dataclass(frozen=True)
class Fleet:
    """A cluster with everything looked up."""

    groups: tuple[ResolvedGroup, ...]
    router: Router
    router_name: str

    @property
    def num_replicas(self) -> int:
        """Engines in all groups."""
        return sum(group.replicas for group in self.groups)

    def facts(self, scenario: Scenario) -> dict[str, Any]:
        """What the results say of it."""
        assert scenario.cluster is not None
        router = {"name": scenario.cluster.router.name, "refresh_s": scenario.cluster.router.refresh_s}
        groups = [
            {
                "replicas": group.replicas,
                "profile": group.resolved.profile.name,
                "engine": group.resolved.engine_settings(),
            }
            for group in self.groups
        ]
        events = [event.model_dump() for event in scenario.cluster.events]
        return {"router": {**router, **self.router.parameters()}, "groups": groups, "events": events}

    def dump(self, section: dict[str, Any]) -> dict[str, Any]:
        """The section with nothing left to defaults."""
        router = {**section["router"], "name": self.router_name, **self.router.parameters()}
        if "groups" not in section:
            return {**section, "router": router}
        groups = [group.resolved.dump() for group in self.groups]
        sizes = [group.replicas for group in self.groups]
        same = ("profile", "engine")
        alike = [{"replicas": n, **{key: data[key] for key in same}} for n, data in zip(sizes, groups, strict=True)]
        return {**section, "groups": alike, "router": router}


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
    from simbatch.sim.scenario.resolve import resolve

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


def file_anywhere(scenario: Scenario, name: str) -> str:
    """A policy's or router's name, a file's with its whole path: the scenario is stored in another folder."""
    file, _, kind = name.rpartition(":")
    found = (path.absolute() for path in (scenario.folder / file, Path(file)) if path.is_file())
    path = next(found, None) if file.endswith(".py") else None
    return f"{path}:{kind}" if path else name
