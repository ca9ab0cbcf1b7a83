"""Settings as flags to paste: of `simbatch`, of `vllm serve`, a file for its --config; and what they rest on."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from simbatch.serving.options import policy_arguments, refuse_undoable
from simbatch.sim.commands.choose import form_said
from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.cost.uncertainty import NO_REAL_RUN, caveats
from simbatch.sim.errors import UserError
from simbatch.sim.results.runs import Settings
from simbatch.sim.scenario import Scenario, resolve
from simbatch.sim.scenario.engine import OURS
from simbatch.sim.scenario.flags import serve_line
from simbatch.sim.text import percent
from simbatch.sim.workload.sessions import Empirical

if TYPE_CHECKING:
    from simbatch.sim.tuning.recommend import Recommendation

CONFIG_FILE = "vllm.yaml"
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
TURNED = "fp8"  # the form that --quantization makes of 16-bit weights


def set_flags(settings: Settings) -> str:
    """`--set engine.max_num_seqs=48 --set 'policy={name: adaptive}'`."""
    return " ".join(f"--set {shlex.quote(f'{key}={_flow(value)}')}" for key, value in settings.items())


def simbatch_run(scenario: Scenario, settings: Settings) -> str:
    """The command that simulates these settings, with what flags had changed before."""
    file = "FILE" if scenario.named is None else shlex.quote(scenario.named)
    return f"simbatch run {file} {set_flags(scenario.changes | settings)}".rstrip()


def vllm_serve(scenario: Scenario, settings: Settings) -> str:
    """The command with what is set by the profile, the scenario or the settings; everything else is vLLM's default.

    The longest request too: the model's own may not fit into the memory that was measured, and vLLM would not start.
    """
    resolved = resolve(scenario.override(settings))
    profile, given = resolved.profile, resolved.scenario.engine
    model, flags = "MODEL", {}
    if isinstance(profile, MeasuredProfile):
        model, _ = checkpoint_of(scenario, profile)
        flags = _of_profile(profile, model) | {"max_model_len": resolved.engine.max_model_len}
    for name in type(given).model_fields:
        value = getattr(given, name)
        if (name, value) == ("kv_cache_dtype", "auto"):  # the profile's own, which vLLM's auto may not be
            continue
        if name in given.model_fields_set and value is not None and name not in OURS:
            flags[name] = value
    is_refused = policy_refusal(scenario, settings) is not None
    return serve_line(model, flags | ({} if is_refused else policy_arguments(resolved.scenario)))


def checkpoint_of(scenario: Scenario, profile: MeasuredProfile) -> tuple[str, bool]:
    """The model's name in a command, and whether it is the scenario's own checkpoint, in the weights of `profile`."""
    own = None if scenario.model is None else resolve(scenario).profile
    if scenario.model is not None and isinstance(own, MeasuredProfile) and own.model == profile.model:
        if own.quantisation == profile.quantisation:
            return scenario.model, True
        if own.quantisation in DTYPES and profile.quantisation == TURNED:
            return scenario.model, False
    return profile.model, False


def policy_refusal(scenario: Scenario, settings: Settings) -> str | None:
    """Why vLLM's scheduler cannot run the policy, if it cannot."""
    changed = scenario.override(settings)
    try:
        refuse_undoable(changed.build_policy(), "policy.name", changed.policy.name)
    except UserError as error:
        return error.problems[0].rule
    return None


def weight_notes(scenario: Scenario, profile: MeasuredProfile) -> list[str]:
    """What one must know about the model's name when its weights are quantised otherwise than the scenario's own."""
    kind, (model, is_own) = profile.quantisation, checkpoint_of(scenario, profile)
    if is_own or kind in DTYPES:
        return []
    if _is_turned(profile, model):
        return [
            f"--quantization fp8 turns the 16-bit checkpoint {model} into FP8 as it is loaded; for one that "
            "is in FP8 already put its name there and leave the flag out."
        ]
    return [
        f"Weights in {kind} need a checkpoint in {kind}: put its name in place of {model}; it says itself how it is "
        "quantised, so there is no flag."
    ]


def _is_turned(profile: MeasuredProfile, model: str) -> bool:
    """Whether 16-bit weights are turned into FP8 as they are loaded.

    Of no other form is there a flag: a checkpoint says itself how it is quantised, and with `awq` or `gptq` beside it
    vLLM up to 0.22 leaves its Marlin kernels for ones several times slower.
    """
    return profile.quantisation == TURNED and form_said(model) != TURNED


def _of_profile(profile: MeasuredProfile, model: str) -> dict[str, Any]:
    """How the model was held when it was measured, where vLLM would do otherwise."""
    flags: dict[str, Any] = {}
    if _is_turned(profile, model):
        flags["quantization"] = TURNED
    if profile.kv_cache_dtype.startswith("fp8"):
        flags["kv_cache_dtype"] = profile.kv_cache_dtype
    if profile.tensor_parallel_size > 1:
        flags["tensor_parallel_size"] = profile.tensor_parallel_size
    return flags


def own_policy(scenario: Scenario, settings: Settings) -> str | None:
    """The policy's name when it is not vLLM's own, which needs simbatch beside vLLM."""
    name = str(scenario.override(settings).policy.name)
    return None if name == "vllm" else name


def _flow(value: Any) -> str:
    """As YAML on one line."""
    import yaml

    if isinstance(value, (dict, list)):
        return str(yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)).strip()
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def all_notes(found: Recommendation) -> list[str]:
    """What the figures rest on."""
    profile = found.profile
    lines = weight_notes(found.scenario, profile)
    if profile.is_estimate:
        lines.append(f"The profile {profile.name} is an estimate: nobody measured this model on this GPU.")
    elif profile.error is not None:
        lines.append(error_note(profile))
    lines += caveats(profile)
    inside = found.trials[found.chosen].mean("simbatch.profile.share_of_steps_in_range")
    if inside is not None and inside < 0.99:
        lines.append(f"Only {percent(inside)} of the steps are inside what the profile measured.")
    assumed = "Arrivals are" if isinstance(found.scenario.workload.prompt_len, Empirical) else "The traffic is"
    lines.append(f"{assumed} an assumption: put yours into scenario.yaml and run `simbatch tune` on it.")
    return lines


def error_note(profile: MeasuredProfile) -> str:
    """How far step times are off, from what, and what real runs say."""
    error = profile.error
    assert error is not None
    named = ((error.decode, "decode"), (error.mixed, "mixed"))
    shares = " and ".join(f"{percent(part.mape)} ({name})" for part, name in named if part.num_steps)
    if error.against == "steps":
        return f"The profile's step times are off by {shares} on average."
    end = profile.real_runs.summary() if profile.real_runs else NO_REAL_RUN
    return f"The profile's fit is off by {shares} on average from steps composed of tables; {end}."


def arguments(found: Recommendation) -> dict[str, Any]:
    """Every argument that the recommendation sets, by vLLM's name with dashes; `model` is the first."""
    profile, engine = found.profile, found.scenario.engine
    given: dict[str, Any] = {"model": checkpoint_of(found.scenario, profile)[0]}
    if _is_turned(profile, given["model"]):
        given["quantization"] = TURNED
    elif profile.quantisation in DTYPES:
        given["dtype"] = DTYPES[profile.quantisation]
    given |= {
        "kv-cache-dtype": profile.kv_cache_dtype if profile.kv_cache_dtype.startswith("fp8") else "auto",
        "tensor-parallel-size": profile.tensor_parallel_size,
        "max-model-len": engine.max_model_len,
        "max-num-seqs": found.chosen.max_num_seqs,
        "max-num-batched-tokens": found.chosen.max_num_batched_tokens,
    }
    if profile.is_gpu:
        given["gpu-memory-utilization"] = profile.memory.gpu_memory_utilization
    return given | {
        "enable-prefix-caching": engine.enable_prefix_caching,
        "enable-chunked-prefill": engine.enable_chunked_prefill,
    }


def command(given: Mapping[str, Any]) -> str:
    """`vllm serve MODEL --flag value ...`."""
    return serve_line(str(given["model"]), {name: value for name, value in given.items() if name != "model"})


def config_yaml(given: Mapping[str, Any], comment: str) -> str:
    """A file for `vllm serve --config FILE`; off is `no-NAME: true`, for vLLM 0.32 passes over `NAME: false`."""
    import yaml

    data = {f"no-{name}" if value is False else name: value is False or value for name, value in given.items()}
    return f"# {comment}\n{yaml.safe_dump(data, sort_keys=False)}"
