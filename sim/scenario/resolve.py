"""From what a scenario says to what the engine runs with: its vLLM's defaults filled in, its start rules checked."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from simbatch.policies.base import Policy
from simbatch.sim.cost.draws import LaunchDraws, NoiseDraws
from simbatch.sim.cost.load import shipped_names
from simbatch.sim.cost.memory import Settled
from simbatch.sim.cost.model import CostModel
from simbatch.sim.cost.profile import Profile
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.scenario.capture import capture_sizes
from simbatch.sim.scenario.defaults import async_scheduling, batch_limits, memory_share
from simbatch.sim.scenario.engine import EngineSettings
from simbatch.sim.scenario.fleet import Fleet, file_anywhere, resolve_fleet
from simbatch.sim.scenario.model import Scenario
from simbatch.sim.scenario.predictions import (
    ERROR,
    OF_TRACE,
    STATED,
    are_foretold,
    asks,
    is_own,
    prediction_problems,
)
from simbatch.sim.scenario.profiles import collect, load_profiles
from simbatch.sim.scenario.rules import idle_keys, start_problems
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.scheduler.versions import (
    CHANGES,
    NEWEST,
    Changes,
    changes_in,
    default_of,
    lacks,
    parse_version,
    unknown_settings,
    untested,
)
from simbatch.sim.workload.chunk import Predictor, name_of


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
        engine, default_max = self.engine, self.profile.default_max_capture_size
        limits = engine.max_num_seqs, engine.max_num_batched_tokens
        return capture_sizes(self.scenario.engine, *limits, default_max, engine.changes)

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
        asked = self.scenario.profile
        is_other = isinstance(asked, str) and asked in shipped_names() and asked != self.profile.name
        return str(asked) if is_other else None

    def noise(self, replica: int = 0) -> NoiseDraws | None:
        """Draws for the step times of one run, seeded as the scenario; None without `engine.step_noise`."""
        noise = self.profile.noise if self.engine.step_noise else None
        return None if noise is None else noise.draws(self.scenario.seed, replica)

    def host_noise(self, replica: int = 0) -> LaunchDraws | None:
        """The same for the host's launches; None where its profile has no spread, or with `host_noise: false`."""
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


def resolve(
    scenario: Scenario,
    policy: Policy | str | None = None,
    predictor: Predictor | None = None,
    changes: Changes | None = None,
) -> Resolved:
    """Look everything up and check it; `policy` takes the place of the scenario's, `predictor` that of its error.

    `changes` are in force instead of those of the scenario's version of vLLM (versions.py).

    Raises UserError with all problems of profile, policy and engine at their lines.
    """
    if isinstance(policy, str):
        scenario, policy = scenario.with_policy(policy), None
    collected: list[Problem] = []
    profile, host_profile = load_profiles(scenario, collected)
    chosen = policy or collect(collected, scenario.build_policy)
    engine = None
    if profile is not None:
        engine = collect(collected, partial(resolve_engine, scenario.engine, profile, scenario.seed, changes))
    foretold = False
    if chosen is not None:
        is_written = ERROR in scenario.policy.params if policy is None else is_own(policy)
        foretold = bool(asks(chosen) and collect(collected, partial(are_foretold, scenario)))
        name = scenario.policy.name if policy is None else _class_name(chosen)
        batching = _batching(scenario, chosen)
        collected += _policy_problems(scenario, chosen, name, batching)
        collected += prediction_problems(chosen, name, predictor, foretold=foretold, is_written=is_written)
    if collected or profile is None or chosen is None or engine is None:
        raise scenario.relocated(UserError(*collected))
    engine = replace(engine, batching=batching)
    resolved = Resolved(scenario, profile, chosen, name, engine, host_profile, foretold, predictor)
    return resolved if scenario.cluster is None else replace(resolved, fleet=resolve_fleet(resolved, policy, predictor))


def resolve_engine(
    settings: EngineSettings, profile: Profile, seed: int = 0, changes: Changes | None = None
) -> EngineConfig:
    """The engine's settings on this profile; UserError when vLLM would not start with them."""
    version = settings.vllm_version or NEWEST
    if changes is None:
        changes = changes_in(parse_version(version))
    _check_noise(settings, profile)
    written = {name: getattr(settings, name) for name in settings.model_fields_set}
    if unknown := unknown_settings(written, changes, version):
        raise UserError(*unknown)
    block_size = settings.block_size or profile.default_block_size
    max_model_len = settings.max_model_len or profile.max_model_len
    max_num_seqs, max_num_batched_tokens = batch_limits(settings, profile, max_model_len, changes)
    same = {f.name for f in fields(EngineConfig)} & EngineSettings.model_fields.keys()
    limits = max_num_seqs, max_num_batched_tokens
    sizes = capture_sizes(settings, *limits, profile.default_max_capture_size, changes)
    # asked also when overridden: vLLM measures its memory first and does not start without any
    computed_blocks = profile.num_gpu_blocks_for(
        memory_share(settings, profile, changes),
        settings.kv_cache_dtype,
        block_size,
        Settled(*limits, len(sizes)),
    )
    num_gpu_blocks = settings.num_gpu_blocks_override or computed_blocks
    config = EngineConfig(
        **{
            **{name: getattr(settings, name) for name in same if not lacks(name, changes)},
            **{name: default_of(name, changes) for name in same if lacks(name, changes)},
            "max_num_seqs": max_num_seqs,
            "max_num_batched_tokens": max_num_batched_tokens,
            "max_model_len": max_model_len,
            "num_gpu_blocks": num_gpu_blocks,
            "block_size": block_size,
            "async_scheduling": async_scheduling(settings, profile, changes),
            "vllm_version": version,
            "changes": changes,
            "host": profile.host_times(),
            "front_end": profile.front_end_times() if settings.front_end else None,
            "max_capture_size": sizes[-1] if sizes else 0,
            "seed": seed,
        }
    )
    problems = list(start_problems(config))
    if problems:
        raise UserError(*problems)
    return config


def _check_noise(settings: EngineSettings, profile: Profile) -> None:
    if settings.step_noise and profile.noise is None:
        rule = f"the profile {profile.name} has no distribution of noise to draw from"
        raise UserError(Problem("engine.step_noise", rule, True, "remove it, or take a profile that has one"))


def _given(settings: EngineSettings) -> set[str]:
    """The keys that the user wrote, as `engine_settings` names them."""
    given = {name for name in settings.model_fields_set if getattr(settings, name) is not None}
    return given | {"num_gpu_blocks"} if "num_gpu_blocks_override" in given else given


def _batching(scenario: Scenario, policy: Policy) -> str:
    """What the scenario says; where it leaves that open, what the policy supports, continuous before static."""
    given = scenario.engine
    if "batching" in given.model_fields_set or given.batching in policy.disciplines:
        return given.batching
    return policy.disciplines[0]


def _policy_problems(scenario: Scenario, policy: Policy, name: str, batching: str) -> list[Problem]:
    """Settings that this policy does not go with."""
    problems = []
    order = scenario.engine.scheduling_policy
    if batching not in policy.disciplines:
        rule = f"policy {name} does not support {batching} batching, only {' and '.join(policy.disciplines)}"
        problems.append(Problem("engine.batching", rule, batching, "take another policy: see `simbatch policies`"))
    if order == "priority" and name != "vllm":
        rule = f"policy {name} owns the order of the queue, which vLLM's --scheduling-policy priority would set too"
        problems.append(Problem("engine.scheduling_policy", rule, order, "remove it, or set policy: {name: vllm}"))
    return problems


def _class_name(policy: Policy) -> str:
    kind = type(policy)
    return f"{kind.__module__}:{kind.__qualname__}"
