"""Whose step times, host and front end a scenario runs with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from simbatch.sim.cost.host_section import HostFile
from simbatch.sim.cost.profile import Profile
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.scenario.model import Scenario

T = TypeVar("T")


def load_profiles(scenario: Scenario, problems: list[Problem]) -> tuple[Profile | None, str | None]:
    """The profile with the host and front end that the scenario wants, and whose they are if another's."""
    from simbatch.sim.cost.by_name import load_profile, with_kv_cache

    def own() -> Profile:
        profile = load_profile(scenario.profile, folder=scenario.folder)
        return with_kv_cache(profile, scenario.profile, scenario.engine.kv_cache_dtype)

    profile = collect(problems, own)
    if scenario.host is None:
        return profile, None
    other = collect(problems, partial(_load_host, scenario.host.profile, scenario.folder))
    if profile is None or other is None:
        return None, None
    return profile.with_host_of(other), other.name


def _load_host(reference: str, folder: Path) -> Profile | HostFile:
    from simbatch.sim.cost.by_name import load_host
    from simbatch.sim.cost.profile import HOST_KEYS

    try:
        profile = load_host(reference, folder=folder)
    except UserError as error:
        of_host = (replace(p, place="host.from") if p.place == "profile" else p for p in error.problems)
        raise UserError(*of_host) from None
    if not any(getattr(profile, key, None) for key in HOST_KEYS):
        rule = f"the profile {profile.name} has neither a host nor a front_end section"
        raise UserError(Problem("host.from", rule, reference, "name one that has, or remove it"))
    return profile


def collect(problems: list[Problem], get: Callable[[], T]) -> T | None:
    """What `get` gives; None where it raises UserError, whose problems are added."""
    try:
        return get()
    except UserError as error:
        problems.extend(error.problems)
        return None
