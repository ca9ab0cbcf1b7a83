"""What a profile says of the engine that was measured or recorded: by its facts, the nearest profile's, or hardly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simbatch.profiler.records.samples import EngineFacts
from simbatch.sim.cost.gpus import profile_name
from simbatch.sim.cost.profile import InlineProfile, MeasuredProfile, Profile
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
