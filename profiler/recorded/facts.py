"""What a recorded server was, as a profile says it: by its own facts, by the nearest profile's, or next to nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from simbatch.sim.cost.gpus import profile_name
from simbatch.sim.cost.load import problems_of
from simbatch.sim.cost.profile import InlineProfile, MeasuredProfile, Profile

NO_END = 2**30  # KV blocks where nobody says how many there are
MAX_MODEL_LEN = 131_072
NEEDED = ("gpu", "total_bytes", "gpu_memory_utilization", "quantisation", "kv_bytes_per_token", "num_gpu_blocks")
COMMAND = "simbatch fit"


def profile_of(
    content: Mapping[str, Any], facts: Mapping[str, Any], nearest: Profile | None, name: str | None
) -> Profile:
    """A whole profile of the sections; raises UserError where the facts are not what a profile can say."""
    source = str(content["host"]["source"])
    if all(facts.get(key) is not None for key in NEEDED):
        own: dict[str, Any] = {**_of_facts(facts), "source": source}
    elif isinstance(nearest, MeasuredProfile):
        kept = nearest.model_dump(exclude={"noise", "real_runs", "request_overhead_s", "client_overhead_s", "streams"})
        notes = (f"fitted from a recorder's files; model, weights, memory and KV blocks: of {nearest.name}",)
        own = {**kept, "source": source, "command": COMMAND, "estimate": False, "notes": notes}
    else:
        blocks, length = facts.get("num_gpu_blocks", NO_END), facts.get("max_model_len", MAX_MODEL_LEN)
        inline = {"num_gpu_blocks": blocks, "max_model_len": length, "block_size": facts.get("block_size", 16)}
        return _checked(InlineProfile, {"name": name or "recorded", **inline, **content})
    own |= {**content, "error": None, "range": None}
    return _checked(MeasuredProfile, own | ({"name": name} if name else {}))


def _of_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    model, degree = _model(str(facts["model"])), int(facts.get("tensor_parallel_size", 1))
    cache = str(facts["kv_cache_dtype"])
    return {
        "name": profile_name(str(facts["gpu"]), model, str(facts["quantisation"]), cache, degree) + "-measured",
        "model": model,
        "gpu": facts["gpu"],
        "quantisation": facts["quantisation"],
        "kv_cache_dtype": cache,
        "tensor_parallel_size": degree,
        "vllm_version": str(facts.get("vllm_version", "unstated")),
        "licence": "unstated",
        "command": COMMAND,
        "max_model_len": facts.get("max_model_len", MAX_MODEL_LEN),
        "memory": _memory(facts),
    }


def _memory(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What vLLM resolved; the reserve is what is left of the share that it may take."""
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


def _model(model: str) -> str:
    """A folder's name alone: the rest of its path means nothing on another machine."""
    return Path(model).name if Path(model).is_absolute() else model


def _checked(kind: type[Profile], content: dict[str, Any]) -> Profile:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise problems_of(error, "the recorder's facts", kind.model_fields) from None
