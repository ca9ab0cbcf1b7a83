"""Settings as flags to paste: of `simbatch`, and of `vllm serve`."""

from __future__ import annotations

import shlex
from typing import Any

from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.scenario import Scenario, resolve
from simbatch.sim.search.tune_space import Settings

OURS = ("batching", "step_noise")  # of `engine`, and no flags of vLLM's


def set_flags(settings: Settings) -> str:
    """`--set engine.max_num_seqs=48 --set 'policy={name: adaptive}'`."""
    return " ".join(f"--set {shlex.quote(f'{key}={_flow(value)}')}" for key, value in settings.items())


def vllm_serve(scenario: Scenario, settings: Settings) -> str:
    """The command with what is set by the scenario or the settings; everything else is vLLM's default."""
    resolved = resolve(scenario.override(settings))
    profile, given = resolved.profile, resolved.scenario.engine
    model = profile.model if isinstance(profile, MeasuredProfile) else "MODEL"
    words = ["vllm serve", shlex.quote(model)]
    for name in type(given).model_fields:
        value = getattr(given, name)
        if name in given.model_fields_set and value is not None and name not in OURS:
            words.append(_vllm_flag(name, value))
    return " ".join(words)


def own_policy(scenario: Scenario, settings: Settings) -> str | None:
    """The policy's name when it is not vLLM's own, which no flag of vLLM's brings."""
    name = str(scenario.override(settings).policy.name)
    return None if name == "vllm" else name


def _vllm_flag(name: str, value: Any) -> str:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {value}"


def _flow(value: Any) -> str:
    """As YAML on one line."""
    import yaml

    if isinstance(value, (dict, list)):
        return str(yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)).strip()
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
