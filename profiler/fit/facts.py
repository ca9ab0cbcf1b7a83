"""What a fit takes from elsewhere: the engine's facts, the nearest profile, what transformers in general have.

As a profile's own keys (of the engine that was measured or recorded), and as what is assumed where streams do not tell.
A token of context costs a decode what reading its keys and values takes, a token of a prompt what multiplying it takes:
their ratio falls as models grow (of the profiles that ship: 1.7e-3 for 8B, 4.3e-4 for 70B in 16 bits, as
size^-0.65), and so does that of attention (1.5e-5 and 6e-6). Where no size is known, 30B is assumed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isnan, nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simbatch.profiler.records.samples import EngineFacts
from simbatch.sim.cost.gpus import capture_size_of_model, default_max_capture_size, profile_name
from simbatch.sim.cost.host import HostTimes
from simbatch.sim.cost.profile import InlineProfile, MeasuredProfile, Profile
from simbatch.sim.cost.step_time import LinearStepTime
from simbatch.sim.json_values import checked

NO_END = 2**30  # KV blocks where nobody says how many there are
MAX_MODEL_LEN = 131_072
NEEDED = ("gpu", "total_bytes", "gpu_memory_utilization", "quantisation", "kv_bytes_per_token", "num_gpu_blocks")
COMMAND, PLACE = "simbatch fit", "the recorder's facts"


def of_engine(engine: EngineFacts, command: str) -> dict[str, Any]:
    """The keys of a profile that the engine's facts fill."""
    source = {"source": f"measured by simbatch profile on {engine.gpu_name}", "command": command or engine.command}
    return {**_of_facts(engine.model_dump()), **source}


def own_name(engine: EngineFacts) -> str:
    """The name that goes by the project's rule."""
    return _name(engine.model_dump())


def profile_of(
    content: Mapping[str, Any], facts: Mapping[str, Any], nearest: Profile | None, name: str | None
) -> Profile:
    """A whole profile of the sections; raises UserError where the facts are not what a profile can say."""
    source = str(content["host"]["source"])
    if all(facts.get(key) is not None for key in NEEDED):
        own: dict[str, Any] = {"name": f"{_name(facts)}-measured", **_of_facts(facts), "source": source}
    elif isinstance(nearest, MeasuredProfile):
        own = beside(nearest, source, "a recorder's files")
    else:
        blocks, length = facts.get("num_gpu_blocks", NO_END), facts.get("max_model_len", MAX_MODEL_LEN)
        inline = {"num_gpu_blocks": blocks, "max_model_len": length, "block_size": facts.get("block_size", 16)}
        return checked(InlineProfile, {"name": name or "recorded", **inline, **content}, PLACE)
    own |= {**content, "error": None, "range": None}
    return checked(MeasuredProfile, own | ({"name": name} if name else {}), PLACE)


def beside(nearest: MeasuredProfile, source: str, fitted_from: str) -> dict[str, Any]:
    """What a fit takes from the nearest profile: all keys but those of measurements of its own."""
    own = {"noise", "real_runs", "request_overhead_s", "client_overhead_s", "streams"}
    notes = (f"fitted from {fitted_from}; model, weights, memory and KV blocks: of {nearest.name}",)
    said = {"source": source, "command": COMMAND, "estimate": False, "notes": notes, "error": None, "range": None}
    return {**nearest.model_dump(exclude=own), **said}


def _name(facts: Mapping[str, Any]) -> str:
    gpu, quantisation, cache = (str(facts[key]) for key in ("gpu", "quantisation", "kv_cache_dtype"))
    return profile_name(gpu, _model(facts), quantisation, cache, int(facts.get("tensor_parallel_size", 1)))


def _model(facts: Mapping[str, Any]) -> str:
    """A folder's name alone: the rest of its path means nothing on another machine."""
    model = str(facts["model"])
    return Path(model).name if Path(model).is_absolute() else model


def _of_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": _model(facts),
        "gpu": facts["gpu"],
        "quantisation": facts["quantisation"],
        "kv_cache_dtype": str(facts["kv_cache_dtype"]),
        "tensor_parallel_size": int(facts.get("tensor_parallel_size", 1)),
        "vllm_version": str(facts.get("vllm_version", "unstated")),
        "licence": "unstated",
        "command": COMMAND,
        "max_model_len": facts.get("max_model_len", MAX_MODEL_LEN),
        "memory": _memory(facts),
    }


def _memory(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What vLLM resolved; the reserve is what is left of the share that vLLM may take.

    Of 80 GiB at 0.92 with 15 of weights, 2 of activations, 1 of graphs and 54 of KV blocks: 73.6 - 72 = 1.6 GiB.
    """
    parts = {key: facts.get(key) for key in ("weights_bytes", "activation_bytes", "graphs_bytes")}
    size = int(facts.get("block_size", 16))
    taken = sum(value or 0 for value in parts.values())
    kv_bytes = int(facts["num_gpu_blocks"]) * size * int(facts["kv_bytes_per_token"])
    share = int(int(facts["total_bytes"]) * float(facts["gpu_memory_utilization"]))
    return {
        **parts,
        "weights_bytes": parts["weights_bytes"] or 0,
        "total_bytes": facts["total_bytes"],
        "gpu_memory_utilization": facts["gpu_memory_utilization"],
        "reserve_bytes": share - taken - kv_bytes,
        "kv_bytes_per_token": facts["kv_bytes_per_token"],
        "block_size": size,
        "num_gpu_blocks": facts["num_gpu_blocks"],
        "num_gpu_blocks_from": "vllm",
    }


SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[bB](?![a-zA-Z])")
UNKNOWN_B = 30.0
CONTEXT, CONTEXT_POWER = 1.7e-3, -0.65  # of 8B
ATTENTION, ATTENTION_POWER = 1.5e-5, -0.42
BESIDE = 1.5  # between profiles of two attention kernels (1) and of one (2.2)
MAX_CAPTURE = default_max_capture_size("h100")  # where the GPU is not known
GRAPH, LAUNCH = 0.3, 0.5  # of a decode's step: launches that nobody sees


class Priors(NamedTuple):
    """What the traffic hardly tells: ratios, and launches in s (`EpisodesProblem.launch_s` has their forms)."""

    context: float  # a decode's context over a prefill token
    mixed_context: float  # a decode's context beside prefills over that without
    attention: float  # per q * (2h + q), over a prefill token
    graph_s: float = nan  # where no host is known
    launch_s: float = nan
    per_seq: float = 0.0  # what a launch grows by with each running request, over the launch; 0: not known
    max_capture: int = MAX_CAPTURE  # tokens of the largest CUDA graph

    def priors(self, decode_s: float) -> Priors:
        """With launches, if these are not known, as parts of the shortest decode."""
        if not isnan(self.graph_s):
            return self
        return self._replace(graph_s=GRAPH * decode_s, launch_s=LAUNCH * decode_s)


def of_name(model: str | None) -> Priors:
    """Of a model by the size in its name."""
    found = SIZE.search((model or "").replace("-", " ").replace("_", " "))
    size = max(1.0, float(found[1])) if found else UNKNOWN_B
    return Priors(
        CONTEXT * (size / 8) ** CONTEXT_POWER,
        BESIDE,
        ATTENTION * (size / 8) ** ATTENTION_POWER,
        max_capture=capture_size_of_model(model or "") or MAX_CAPTURE,
    )


def of_profile(profile: Profile) -> Priors:
    """Of the nearest profile."""
    own = _launches(profile.host_times()) | {
        "max_capture": profile.capture_size_of_model or profile.default_max_capture_size
    }
    step_time = profile.step_time
    if isinstance(step_time, LinearStepTime):
        token_s = step_time.per_prefill_token_s
        if token_s <= 0:
            return of_name(None)._replace(**own)
        return Priors(step_time.per_context_token_s / token_s, 1.0, 0.0, **own)
    mixed, decode = step_time.mixed, step_time.decode
    counts, times_s = np.array(mixed.tokens.count), np.array(mixed.tokens.time_s)
    token_s = float((times_s[-1] - times_s[0]) / max(1, counts[-1] - counts[0])) + mixed.per_prefill_context_token_s
    if token_s <= 0 or decode.per_context_token_s <= 0:
        return of_name(None)._replace(**own)
    return Priors(
        decode.per_context_token_s / token_s,
        mixed.per_context_token_s / decode.per_context_token_s,
        mixed.per_attention_unit_s / token_s,
        **own,
    )


def _launches(host: HostTimes | None) -> dict[str, Any]:
    if host is None or not host.none.base_ps:
        return {}
    none = host.none
    return {
        "graph_s": max(1e-4, host.graph.base_ps * 1e-12),
        "launch_s": none.base_ps * 1e-12,
        "per_seq": none.per_seq_ps / (none.base_ps + none.per_prefill_ps),
    }
