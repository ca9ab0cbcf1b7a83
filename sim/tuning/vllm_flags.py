"""Settings as flags to paste: of `simbatch`, of `vllm serve`, and a file for its --config."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from simbatch.serving.options import policy_arguments, refuse_undoable
from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.errors import UserError
from simbatch.sim.scenario import Scenario, resolve
from simbatch.sim.scenario.engine import OURS
from simbatch.sim.scenario.flags import serve_line
from simbatch.sim.tuning.space import Settings

if TYPE_CHECKING:
    from simbatch.sim.tuning.recommend import Recommendation

# What 16-bit weights are turned into as they are loaded. A checkpoint that is quantised says itself how; with `awq` or
# `gptq` beside it vLLM up to 0.22 leaves its Marlin kernels for ones several times slower.
QUANTIZATION_FLAGS = ("fp8",)


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
        model = model_of(scenario, profile)
        flags = _of_profile(profile, model) | {"max_model_len": resolved.engine.max_model_len}
    for name in type(given).model_fields:
        value = getattr(given, name)
        if (name, value) == ("kv_cache_dtype", "auto"):  # the profile's own, which vLLM's auto may not be
            continue
        if name in given.model_fields_set and value is not None and name not in OURS:
            flags[name] = value
    is_refused = policy_refusal(scenario, settings) is not None
    return serve_line(model, flags | ({} if is_refused else policy_arguments(resolved.scenario)))


def model_of(scenario: Scenario, profile: MeasuredProfile) -> str:
    """The checkpoint's name: the scenario's own as long as `profile` is of the same model, else the profile's."""
    own = resolve(scenario).profile
    is_same = isinstance(own, MeasuredProfile) and own.model == profile.model
    return scenario.model if scenario.model is not None and is_same else profile.model


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
    kind, model = profile.quantisation, model_of(scenario, profile)
    if kind in ("bf16", "fp16", "fp32") or (model == scenario.model and resolve(scenario).profile == profile):
        return []
    if _of_profile(profile, model).get("quantization") == "fp8":
        return [
            f"--quantization fp8 turns the 16-bit checkpoint {model} into FP8 as it is loaded; for one that "
            "is in FP8 already put its name there and leave the flag out."
        ]
    return [
        f"Weights in {kind} need a checkpoint in {kind}: put its name in place of {model}; it says itself how it is "
        "quantised, so there is no flag."
    ]


def _of_profile(profile: MeasuredProfile, model: str) -> dict[str, Any]:
    """How the model was held when it was measured, where vLLM would do otherwise."""
    flags: dict[str, Any] = {}
    if profile.quantisation in QUANTIZATION_FLAGS and profile.quantisation not in model.lower():
        flags["quantization"] = profile.quantisation
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


CONFIG_FILE = "vllm.yaml"
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def arguments(found: Recommendation) -> dict[str, Any]:
    """Every argument that the recommendation sets, by vLLM's name with dashes; `model` is the first."""
    profile, engine = found.profile, found.scenario.engine
    given: dict[str, Any] = {"model": model_of(found.scenario, profile)}
    if quantization := _of_profile(profile, given["model"]).get("quantization"):
        given["quantization"] = quantization
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
