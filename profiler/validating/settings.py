"""One engine on both sides: the scenario's settings go to vLLM, and what vLLM resolved goes to the simulation.

A setting that the scenario names and the real engine does not have is an error; what it leaves open is the engine's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simbatch.profiler.fitting.samples import EngineFacts
from simbatch.profiler.measuring.vllm_engine import EngineOptions
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.scenario import Scenario
from simbatch.sim.scenario.engine import EngineSettings

OURS = {"batching", "step_noise"}
NOT_ASKED = OURS | {"gpu_memory_utilization", "kv_cache_dtype", "num_gpu_blocks_override"}


def written(scenario: Scenario) -> dict[str, Any]:
    """The engine settings that the user wrote."""
    settings = scenario.engine
    given = {key: getattr(settings, key) for key in EngineSettings.model_fields if key in settings.model_fields_set}
    return {key: value for key, value in given.items() if value is not None}


def check_can_run(scenario: Scenario) -> None:
    """UserError for what simbatch does not run inside the real engine."""
    problems = []
    if scenario.policy.name != "vllm":
        rule = "only vLLM's own scheduler runs in the real engine so far"
        place, name = scenario.locate(("policy",)), scenario.policy.name
        problems.append(Problem(place, rule, name, "--set 'policy={name: vllm}'"))
    if scenario.engine.batching != "continuous":
        rule = "vLLM's engine batches continuously"
        problems.append(Problem(scenario.locate(("engine", "batching")), rule, "static", "remove it"))
    if problems:
        raise UserError(*problems)


def engine_options(
    scenario: Scenario,
    model: str,
    *,
    quantization: str | None = None,
    tensor_parallel_size: int | None = None,
    extra: Mapping[str, Any] | None = None,
) -> EngineOptions:
    """What vLLM is started with."""
    settings = {key: value for key, value in written(scenario).items() if key not in OURS}
    twice = [key for key in extra or {} if key in EngineSettings.model_fields]
    if twice:
        mend = f"write --set engine.{twice[0]}=..., which the simulation heeds too"
        raise UserError(Problem(f"--engine-arg {twice[0]}", "is a setting of the scenario", mend=mend))
    own = EngineOptions.__dataclass_fields__.keys()
    named = {key: value for key, value in settings.items() if key in own}
    others = {key: value for key, value in settings.items() if key not in own}
    return EngineOptions(
        model,
        quantization=quantization,
        tensor_parallel_size=tensor_parallel_size,
        **named,
        extra={**others, **(extra or {})},
    )


def as_resolved(scenario: Scenario, facts: EngineFacts, settings: Mapping[str, Any]) -> Scenario:
    """The scenario on the engine that vLLM made of it; UserError where that is another one than the user wrote."""
    given = written(scenario)
    names = [key for key in EngineSettings.model_fields if key not in NOT_ASKED]
    resolved = {key: settings[key] for key in names if key in settings}
    resolved |= {key: getattr(facts, key) for key in names if hasattr(facts, key)}
    resolved["num_gpu_blocks_override"] = facts.num_gpu_blocks
    problems = [
        Problem(
            scenario.locate(("engine", key)),
            f"the real engine has {_plain(resolved[key])}",
            value,
            f"write {key}: {_plain(resolved[key])}, or leave it out",
        )
        for key, value in given.items()
        if key in resolved and resolved[key] != value
    ]
    if given.get("kv_cache_dtype", "auto") not in ("auto", facts.kv_cache_dtype):
        rule = f"the real engine has {facts.kv_cache_dtype}"
        problems.append(Problem(scenario.locate(("engine", "kv_cache_dtype")), rule, given["kv_cache_dtype"]))
    if problems:
        raise UserError(*problems)
    added = {f"engine.{key}": value for key, value in resolved.items() if value is not None and key not in given}
    return scenario.override(added, origin="--engine")


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
