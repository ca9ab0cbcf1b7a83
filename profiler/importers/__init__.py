"""Measurements of others as whole profiles: fit, held-out error, memory, range, provenance; one module per source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from simbatch.profiler.importers import core_package, llmservingsim
from simbatch.profiler.importers.source import ImportRequest, TableSource, portable
from simbatch.profiler.model.config import read_json, read_model_config
from simbatch.profiler.model.estimates import assumed_sections, length_note, scaled_weights_profile
from simbatch.profiler.model.memory_plan import plan_memory
from simbatch.profiler.model.reserves import peak_of
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.cost.gpus import GPUS, profile_name
from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.cost.sections import Memory
from simbatch.sim.errors import Problem, UserError

BLOCK_SIZE = 16  # vLLM's default on these GPUs
ESTIMATED = (
    "memory: nobody recorded what vLLM resolved on this GPU; num_gpu_blocks is the planner's estimate at "
    "gpu_memory_utilization {utilization:g}: see docs/memory.md, and set num_gpu_blocks_override where you know better"
)
RESOLVED = (
    "memory: num_gpu_blocks, block_size, gpu_memory_utilization and total_bytes are what vLLM resolved when a "
    "recorded run started; weights_bytes follow from the model's published shapes; reserve_bytes is what these "
    "imply (activations, CUDA graphs, other libraries), not a measurement"
)


class ImportedMemory(NamedTuple):
    """Memory, the longest request that it holds, the tokens of KV cache for a design, and what to say of them."""

    memory: Memory
    max_model_len: int
    kv_tokens: int
    notes: tuple[str, str]


@dataclass(frozen=True)
class RecordedStart:
    """What an engine's start resolved, from a recorded run's `meta.json`."""

    num_gpu_blocks: int
    block_size: int
    gpu_memory_utilization: float
    total_bytes: int
    max_model_len: int
    limits: tuple[int, int] | None  # max_num_seqs and max_num_batched_tokens, where the file says them


def memory_of_run(source: TableSource, facts: RecordedStart) -> ImportedMemory:
    """The blocks that vLLM resolved; the reserve is what they imply."""
    config = source.config
    kv_bytes = facts.num_gpu_blocks * facts.block_size * config.kv_bytes_per_token
    share = int(facts.total_bytes * facts.gpu_memory_utilization)
    memory = Memory(
        total_bytes=facts.total_bytes,
        gpu_memory_utilization=facts.gpu_memory_utilization,
        weights_bytes=config.weights_bytes,
        reserve_bytes=share - config.weights_bytes - kv_bytes,
        kv_bytes_per_token=config.kv_bytes_per_token,
        block_size=facts.block_size,
        num_gpu_blocks=facts.num_gpu_blocks,
        num_gpu_blocks_from="vllm",
        peak=None if facts.limits is None else peak_of(config, 1, *facts.limits),
    )
    kv_tokens = (facts.num_gpu_blocks - 1) * facts.block_size
    own = config.max_position_embeddings
    length = (
        f"max_model_len is that run's {facts.max_model_len}: {kv_tokens} tokens of KV cache cannot hold one request of "
        f"the model's own {own}"
        if own > kv_tokens
        else f"max_model_len is that run's {facts.max_model_len}; the model's own is {own}"
    )
    return ImportedMemory(memory, facts.max_model_len, kv_tokens, (RESOLVED, length))


def memory_of_plan(source: TableSource, tensor_parallel_size: int) -> ImportedMemory:
    """What the planner expects vLLM to resolve; raises UserError when the weights leave no room."""
    config, gpu = source.config, GPUS[source.gpu]
    plan = plan_memory(
        config,
        gpu,
        quantisation=source.quantisation,
        kv_cache_dtype=source.kv_cache_dtype,
        tensor_parallel_size=tensor_parallel_size,
        block_size=None if config.has_latent_attention else BLOCK_SIZE,
        max_num_seqs=gpu.default_max_num_seqs,
        max_num_batched_tokens=gpu.default_max_num_batched_tokens,
    )
    memory = plan.memory()
    kv_tokens = (memory.num_gpu_blocks - 1) * memory.block_size
    note = ESTIMATED.format(utilization=plan.gpu_memory_utilization)
    about = int(float(f"{kv_tokens:.2g}"))  # the fit need not change with an estimate's last digits
    length = min(config.max_position_embeddings, kv_tokens)
    return ImportedMemory(memory, length, about, (note, length_note(config, kv_tokens)))


def read_run_facts(path: Path) -> RecordedStart:
    """Read a run's `meta.json`; raises UserError for keys that are missing or of the wrong kind."""
    content = read_json(path)
    engine, cache = _part(path, content, "engine_kwargs"), _part(path, content, "kv_cache")
    hardware = _part(path, content, "hardware")
    utilization = cache.get("gpu_memory_utilization")
    if isinstance(utilization, bool) or not isinstance(utilization, int | float) or not 0 < utilization <= 1:
        rule = "must be a number above 0, at most 1"
        raise UserError(Problem(f"{path} kv_cache.gpu_memory_utilization", rule, utilization))
    return RecordedStart(
        num_gpu_blocks=_whole(path, cache, "kv_cache", "num_gpu_blocks"),
        block_size=_whole(path, cache, "kv_cache", "block_size"),
        gpu_memory_utilization=float(utilization),
        total_bytes=_whole(path, hardware, "hardware", "device_total_memory_bytes"),
        max_model_len=_whole(path, engine, "engine_kwargs", "max_model_len"),
        limits=_limits(path, engine),
    )


def _limits(path: Path, engine: Mapping[str, Any]) -> tuple[int, int] | None:
    """Both, or none."""
    keys = ("max_num_seqs", "max_num_batched_tokens")
    if any(engine.get(key) is None for key in keys):
        return None
    seqs, tokens = (_whole(path, engine, "engine_kwargs", key) for key in keys)
    return seqs, tokens


def _part(path: Path, content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = content.get(key)
    if not isinstance(value, dict):
        raise UserError(Problem(f"{path} {key}", "must be an object with keys", value))
    return value


def _whole(path: Path, part: Mapping[str, Any], where: str, key: str) -> int:
    value = part.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise UserError(Problem(f"{path} {where}.{key}", "must be a whole number above 0", value))
    return value


def estimate_profile(base: str, quantisation: str, model_config: Path, output_name: str) -> MeasuredProfile:
    """Scale the weights of the profile `base`; raises UserError for one that holds no measurements of a model."""
    measured = load_profile(base, folder=Path())
    if not isinstance(measured, MeasuredProfile) or measured.is_estimate:
        raise UserError(Problem("--base", "must be a profile that was measured", base, "see simbatch profiles list"))
    config = read_model_config(model_config)
    command = (
        f"simbatch profiles estimate --base {portable(Path(base))} --quantization {quantisation} "
        f"--model-config {portable(model_config)} -o {output_name}"
    )
    return scaled_weights_profile(measured, config, quantisation, command)


# Requests that share a prefix each read it, so contexts can add up to more than the cache holds. In a large cache
# nothing gets near that, and fitting for it costs accuracy where the batches are.
SHARED_CONTEXT = 2
MAX_SHARED_CONTEXT_TOKENS = 2**18
LINK_NOTE = (
    "all-reduce: computed, 2 a layer, for a PCIe link of {link}, with which a real server of two RTX PRO 6000 is met; "
    "boards with switches, or without peer-to-peer, differ by several times"
)
SOURCES: dict[str, Callable[[ImportRequest], TableSource]] = {
    "llmservingsim": llmservingsim.read_source,
    "aiconfigurator-core": core_package.read_source,
}


def import_profile(request: ImportRequest) -> MeasuredProfile:
    """Fit a profile from measurements; a run's meta.json gives what its engine resolved at its start, no times.

    Raises UserError for missing or malformed files and for what cannot be imported.
    """
    degree = request.tensor_parallel_size
    if request.link is not None and degree == 1:
        raise UserError(Problem("--link-us", "one GPU needs no link", mend="leave it out"))
    facts = None if request.run_meta is None else read_run_facts(request.run_meta)
    source = SOURCES[request.source](request)
    notes = [] if source.link is None else [LINK_NOTE.format(link=source.link.text())]
    resolved = memory_of_plan(source, degree) if facts is None else memory_of_run(source, facts)
    step_time, error, measured = source.fit(context_tokens(resolved.kv_tokens))
    return MeasuredProfile(
        name=profile_name(source.gpu, source.model, source.quantisation, source.kv_cache_dtype, degree),
        model=source.model,
        gpu=source.gpu,
        quantisation=source.quantisation,
        kv_cache_dtype=source.kv_cache_dtype,
        tensor_parallel_size=degree,
        vllm_version=source.vllm_version,
        source=source.credit,
        licence=source.licence,
        command=request.command,
        max_model_len=resolved.max_model_len,
        notes=(*resolved.notes, *source.notes, *notes),
        memory=resolved.memory,
        link=source.link,
        step_time=step_time,
        error=error,
        range=measured,
        **assumed_sections(degree),
    )


def context_tokens(kv_tokens: int) -> int:
    """How many tokens of context a batch may have in all, for a cache of so many."""
    return max(kv_tokens, min(SHARED_CONTEXT * kv_tokens, MAX_SHARED_CONTEXT_TOKENS))
