"""A scenario with everything looked up: its profiles, its engine, or its fleet of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from simbatch.sim.cost.host import LaunchDraws, NoiseDraws
from simbatch.sim.cost.model import CostModel
from simbatch.sim.cost.profile import Profile
from simbatch.sim.cost.sections import HostFile
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.plugins.policy import Policy
from simbatch.sim.plugins.router import Router
from simbatch.sim.scenario.engine import EngineSettings
from simbatch.sim.scenario.policy import ERROR, OF_TRACE, STATED, asks
from simbatch.sim.scenario.rules import capture_sizes, idle_keys, memory_share
from simbatch.sim.scheduler.config import CHANGES, EngineConfig, lacks, untested
from simbatch.sim.workload.chunk import Predictor, name_of

if TYPE_CHECKING:
    from simbatch.sim.scenario.model import Scenario

T = TypeVar("T")


@dataclass(frozen=True)
class Resolved:
    """A scenario with everything looked up.

    `profile` has the host and the front end that the engine runs with, whosever they are.
    """

    scenario: Scenario
    profile: Profile
    policy: Policy
    policy_name: str
    engine: EngineConfig
    host_profile: str | None = None  # whose host and front end these are, where another profile was named
    foretold: bool = False  # whether the trace says what was predicted of the output lengths
    predictor: Predictor | None = None
    fleet: Fleet | None = None  # where the scenario has a cluster

    @property
    def lead(self) -> Resolved:
        """What stands for all engines in the results: the first of a cluster's groups, or the engine itself."""
        return self if self.fleet is None else self.fleet.groups[0].resolved

    @property
    def defaults(self) -> tuple[str, ...]:
        """The keys of `engine_settings` that the user did not write."""
        given = _given(self.scenario.engine)
        return tuple(sorted(name for name in self.engine_settings() if name not in given))

    def engine_settings(self) -> dict[str, Any]:
        """The engine's settings as a scenario says them; None where a limit is not set.

        All of them, but those that nobody wrote and that change nothing on this profile.
        """
        given, engine = self.scenario.engine, self.engine
        left_out = {"num_gpu_blocks_override", *(idle_keys(self.profile) - _given(given))}
        names = [n for n in EngineSettings.model_fields if n not in left_out and not lacks(n, engine.changes)]
        resolved = {name: getattr(engine, name) for name in names if hasattr(engine, name)} | {
            "cudagraph_capture_sizes": list(self.capture_sizes),
            "max_cudagraph_capture_size": engine.max_capture_size,
            "front_end": given.front_end,
        }
        settings = {name: resolved.get(name, getattr(given, name)) for name in names}
        if settings["gpu_memory_utilization"] is None:
            settings["gpu_memory_utilization"] = memory_share(given, self.profile, engine.changes)
        return {**settings, "num_gpu_blocks": engine.num_gpu_blocks}

    @property
    def without_effect(self) -> tuple[str, ...]:
        """The keys of `engine` that the user wrote for nothing, since the profile has no figures for them."""
        given = self.scenario.engine
        limits = {"max_num_queued_reqs", "max_num_queued_tokens"}  # these refuse on any profile
        idle = (idle_keys(self.profile) - limits) & _given(given)
        default = {name: field.default for name, field in EngineSettings.model_fields.items()}
        return tuple(sorted(name for name in idle if getattr(given, name) != default[name]))

    @property
    def vllm_notes(self) -> tuple[str, ...]:
        """What to know of this version: that nobody tested it, or that it passes over a setting."""
        engine, notes = self.engine, [untested(self.engine.vllm_version)]
        if engine.prefill_schedule_interval > 1 and "interval_alone" not in engine.changes:
            since = ".".join(map(str, CHANGES["interval_alone"].since))
            with_dp = f"before {since} it holds with data parallelism alone"
            notes.append(f"Without effect in vLLM {engine.vllm_version}: engine.prefill_schedule_interval; {with_dp}.")
        return tuple(note for note in notes if note is not None)

    @property
    def capture_sizes(self) -> tuple[int, ...]:
        """Tokens of the CUDA graphs, rising."""
        engine, profile = self.engine, self.profile
        limits = engine.max_num_seqs, engine.max_num_batched_tokens, profile.default_max_capture_size
        return capture_sizes(self.scenario.engine, *limits, engine.changes, of_model=profile.capture_size_of_model)

    def cost_model(self) -> CostModel:
        """How long the device takes for a step, under these settings."""
        return self.profile.cost_model(self.capture_sizes)

    @property
    def predicted_by(self) -> str | None:
        """Who predicts output lengths for the policy: `stated_error`, `trace`, a function; None where it never asks."""
        if not asks(self.policy):
            return None
        if self.predictor is not None:
            return name_of(self.predictor)
        return OF_TRACE if self.foretold else STATED if hasattr(self.policy, ERROR) else None

    def policy_parameters(self) -> dict[str, Any]:
        """All of them but an error of predictions that come from elsewhere."""
        left_out = () if self.predicted_by in (None, STATED) else (ERROR,)
        return {name: value for name, value in self.policy.parameters().items() if name not in left_out}

    @property
    def profile_asked_for(self) -> str | None:
        """The scenario's profile, where another one was taken for the sake of `engine.kv_cache_dtype`."""
        from simbatch.sim.cost.by_name import shipped_names

        asked = self.scenario.profile
        is_other = isinstance(asked, str) and asked in shipped_names() and asked != self.profile.name
        return str(asked) if is_other else None

    def noise(self, replica: int = 0) -> NoiseDraws | None:
        """Draws for the step times of one run, seeded as the scenario; None without `engine.step_noise`."""
        noise = self.profile.noise if self.engine.step_noise else None
        return None if noise is None else noise.draws(self.scenario.seed, replica)

    def host_noise(self, replica: int = 0) -> LaunchDraws | None:
        """Draws for the host's launches, seeded as the scenario; None without a spread, or with `host_noise: false`."""
        host = self.profile.host if self.scenario.engine.host_noise else None
        return None if host is None else host.spread.draws(self.scenario.seed, replica)

    def dump(self) -> dict[str, Any]:
        """The scenario with nothing left to defaults, as plain data that gives the same run again."""
        engine = {key: value for key, value in self.engine_settings().items() if value is not None}
        blocks = engine.pop("num_gpu_blocks")
        if engine.keys() >= {"cudagraph_capture_sizes", "max_cudagraph_capture_size"}:  # one of the two says all
            del engine["cudagraph_capture_sizes" if self._largest_says_all() else "max_cudagraph_capture_size"]
        engine["num_gpu_blocks_override"] = blocks
        policy = {"name": file_anywhere(self.scenario, self.policy_name), **self.policy_parameters()}
        policy = {key: value for key, value in policy.items() if value is not None}
        taken = {"profile": self.profile.name} if self.profile_asked_for else {}
        data = self.scenario.dump() | taken | {"engine": engine, "policy": policy}
        return data if self.fleet is None else data | {"cluster": self.fleet.dump(data["cluster"])}

    def _largest_says_all(self) -> bool:
        """Whether vLLM makes the same CUDA graphs when told the largest alone."""
        sizes, engine = self.capture_sizes, self.engine
        if not sizes:
            return True
        of_largest = EngineSettings(max_cudagraph_capture_size=sizes[-1])
        limits = engine.max_num_seqs, engine.max_num_batched_tokens
        return sizes == capture_sizes(of_largest, *limits, sizes[-1], engine.changes)


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


def file_anywhere(scenario: Scenario, name: str) -> str:
    """A policy's or router's name, a file's with its whole path: the scenario is stored in another folder."""
    file, _, kind = name.rpartition(":")
    found = (path.absolute() for path in (scenario.folder / file, Path(file)) if path.is_file())
    path = next(found, None) if file.endswith(".py") else None
    return f"{path}:{kind}" if path else name


def _given(settings: EngineSettings) -> set[str]:
    """The keys that the user wrote, as `engine_settings` names them."""
    given = {name for name in settings.model_fields_set if getattr(settings, name) is not None}
    return given | {"num_gpu_blocks"} if "num_gpu_blocks_override" in given else given


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
