"""One engine on both sides: the scenario's settings go to vLLM, and what vLLM resolved goes to the simulation.

A setting that the scenario names and the real engine does not have is an error; what it leaves open is the engine's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simbatch.profiler.records.samples import EngineFacts
from simbatch.profiler.server.start import EngineOptions
from simbatch.serving.options import SCHEDULER_CLASS, PolicyOptions, refuse_undoable
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.scenario import Scenario
from simbatch.sim.scenario.engine import OURS, EngineSettings
from simbatch.sim.scheduler.config import parse_version

NOT_TOLD = {*OURS, "vllm_version"}  # to the server: its version is what it is
OF_THE_FRONT_END = {"api_server_count", "max_num_queued_reqs", "max_num_queued_tokens"}  # the engine has none of them
NOT_ASKED = {*NOT_TOLD, *OF_THE_FRONT_END, "gpu_memory_utilization", "kv_cache_dtype", "num_gpu_blocks_override"}


def written(scenario: Scenario) -> dict[str, Any]:
    """The engine settings that the user wrote."""
    settings = scenario.engine
    given = {key: getattr(settings, key) for key in EngineSettings.model_fields if key in settings.model_fields_set}
    return {key: value for key, value in given.items() if value is not None}


def check_can_run(scenario: Scenario) -> None:
    """UserError for what simbatch does not run inside the real engine."""
    problems = []
    if scenario.engine.batching != "continuous":
        rule = "vLLM's engine batches continuously"
        problems.append(Problem(scenario.locate(("engine", "batching")), rule, "static", "remove it"))
    try:
        refuse_undoable(scenario.build_policy(), "policy.name", scenario.policy.name)
    except UserError as error:
        problems += scenario.relocated(error).problems
    if problems:
        raise UserError(*problems)


def policy_arguments(scenario: Scenario) -> dict[str, Any]:
    """The engine arguments that run the scenario's policy in vLLM; none for vLLM's own scheduler."""
    if scenario.policy.name == "vllm":
        return {}
    folder = scenario.folder.absolute()
    options = PolicyOptions(scenario.policy.name, scenario.policy.params, scenario.profile, scenario.seed, folder)
    return {"scheduler_cls": SCHEDULER_CLASS, "additional_config": options.additional_config()}


def engine_options(
    scenario: Scenario,
    model: str,
    *,
    quantization: str | None = None,
    tensor_parallel_size: int | None = None,
    extra: Mapping[str, Any] | None = None,
) -> EngineOptions:
    """What vLLM is started with."""
    settings = {key: value for key, value in written(scenario).items() if key not in NOT_TOLD}
    twice = [key for key in extra or {} if key in EngineSettings.model_fields]
    if twice:
        mend = f"write --set engine.{twice[0]}=..., which the simulation heeds too"
        raise UserError(Problem(f"--engine-arg {twice[0]}", "is a setting of the scenario", mend=mend))
    ours = policy_arguments(scenario)
    if taken := sorted(ours.keys() & (extra or {}).keys()):
        rule = f"is how vLLM is told of the policy {scenario.policy.name}"
        raise UserError(Problem(f"--engine-arg {taken[0]}", rule, mend="leave it out"))
    own = EngineOptions.__dataclass_fields__.keys()
    named = {key: value for key, value in settings.items() if key in own}
    others = {key: value for key, value in settings.items() if key not in own}
    return EngineOptions(
        model,
        quantization=quantization,
        tensor_parallel_size=tensor_parallel_size,
        **named,
        extra={**others, **ours, **(extra or {})},
    )


def as_resolved(scenario: Scenario, facts: EngineFacts, settings: Mapping[str, Any]) -> Scenario:
    """The scenario on the engine that vLLM made of it; UserError where that is another one than the user wrote."""
    names = [key for key in EngineSettings.model_fields if key not in NOT_ASKED]
    resolved = {key: settings[key] for key in names if key in settings}
    resolved |= {key: getattr(facts, key) for key in names if hasattr(facts, key)}
    resolved["num_gpu_blocks_override"] = facts.num_gpu_blocks
    given = written(scenario)
    version = given.get("vllm_version")
    is_same = version is not None and parse_version(version) == parse_version(facts.vllm_version)
    resolved["vllm_version"] = version if is_same else facts.vllm_version
    problems = []
    if given.get("kv_cache_dtype", "auto") not in ("auto", facts.kv_cache_dtype):
        rule = f"the real engine has {facts.kv_cache_dtype}"
        problems.append(Problem(scenario.locate(("engine", "kv_cache_dtype")), rule, given["kv_cache_dtype"]))
    return agreed(scenario, resolved, "--engine", problems)


def agreed(scenario: Scenario, real: Mapping[str, Any], origin: str, problems: Sequence[Problem] = ()) -> Scenario:
    """The scenario with what the real engine has wherever it leaves that open; UserError where it says otherwise.

    `real` has settings by their names there, `origin` says where they come from; `problems` are known before.
    """
    given = written(scenario)
    found = [
        Problem(
            scenario.locate(("engine", key)),
            f"the real engine has {_plain(real[key])}",
            value,
            f"write {key}: {_plain(real[key])}, or leave it out",
        )
        for key, value in given.items()
        if key in real and real[key] != value
    ]
    if found or problems:
        raise UserError(*found, *problems)
    added = {f"engine.{key}": value for key, value in real.items() if value is not None and key not in given}
    return scenario.override(added, origin=origin)


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
