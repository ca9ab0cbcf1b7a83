"""What fits, of a model on a GPU or of a profile: the answer of `simbatch memory`, and the sentences beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from simbatch.profiler.model.memory_batch import (
    Fit,
    RequestLengths,
    lengths_of_flags,
    runnable,
    whole_blocks,
)
from simbatch.profiler.model.memory_plan import MemoryPlan, plan_memory
from simbatch.profiler.model.memory_rows import (
    Cache,
    MemoryAnswer,
    Row,
    cache_of_plan,
    layout_groups,
    plan_rows,
    rows_of,
)
from simbatch.profiler.model.published import find_model
from simbatch.sim.cost.gpus import GIB, Gpu, gpu_of, memory_bytes
from simbatch.sim.errors import Problem, UserError

MAX_SEQS = 65_536
SETTINGS = (  # of a plan, by the command's flags
    "kv_cache_dtype",
    "gpu_memory_utilization",
    "block_size",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_len",
    "enforce_eager",
    "enable_prefix_caching",
)
Flags = Mapping[str, Any]


def answer_of_model(model: str, flags: Flags) -> MemoryAnswer:
    """A model on a GPU; UserError for what vLLM does not run."""
    gpu = gpu_of_flags(flags)
    config, name, assumed = find_model(model, flags.get("assume"))
    plan = plan_of(config, gpu, flags)
    cache = cache_of_plan(plan)
    kept, cuts, rows, found = _held(cache, flags)
    facts = facts_of(name, plan, gpu, config.num_parameters)
    size = plan.limits.tensor_parallel_size
    gpus = f"{size} x {gpu.name}, figures of one" if size > 1 else gpu.name
    head = [
        headline(cache, kept, rows, plan),
        f"{name}: {config.num_parameters:,} parameters, {plan.quantisation} weights, on {gpus}",
        f"vLLM {flags['vllm_version'] or facts['vllm_version']}, max_num_seqs {cache.max_num_seqs:,}, "
        f"max_num_batched_tokens {plan.limits.max_num_batched_tokens:,}, max_model_len {cache.max_model_len:,}",
    ]
    _say_requests(kept, head, facts)
    largest = None
    if found is not None and kept is not None and found.at_risk > cache.max_num_seqs and flags["max_num_seqs"] is None:
        largest = largest_max_num_seqs(_batch_with(config, gpu, flags, kept), cache.max_num_seqs)
    groups = layout_groups(plan.layout)
    notes = [*assumed, *_checkpoint_notes(plan, config.checkpoint.kv_cache_dtype, flags), *([groups] if groups else [])]
    notes += [*_refusals(plan, config.max_position_embeddings), *cuts, *notes_of(cache, kept, found, largest)]
    return MemoryAnswer(head, facts, [*plan_rows(plan), *rows], notes)


def answer_of_profile(name: str, flags: Flags) -> MemoryAnswer:
    """What a profile's blocks hold."""
    from simbatch.sim.cost.by_name import load_profile
    from simbatch.sim.cost.profile import MeasuredProfile

    profile = load_profile(name, folder=Path())
    if not isinstance(profile, MeasuredProfile):
        rule = "has no memory figures: its blocks are written inline"
        raise UserError(Problem("--profile", rule, name, "take one that ships: `simbatch profiles list`"))
    kv, utilization = flags["kv_cache_dtype"], flags["gpu_memory_utilization"]
    size = flags["block_size"] or profile.default_block_size
    blocks = profile.num_gpu_blocks_for(utilization, kv, size)
    same = kv == "auto" and utilization is None
    how = f"as {profile.name} says ({profile.memory.num_gpu_blocks_from})" if same else "from the profile's memory"
    is_exact = same and profile.memory.num_gpu_blocks_from == "vllm"
    seqs, length = (
        flags["max_num_seqs"] or profile.default_max_num_seqs,
        flags["max_model_len"] or profile.max_model_len,
    )
    cache = Cache(blocks, size, length, seqs, is_exact, whole_blocks(size), -(-length // size))
    kept, cuts, rows, found = _held(cache, flags)
    parts = [
        Row("blocks", "blocks", blocks, how, is_exact),
        Row("kv_tokens", "KV tokens", cache.max_tokens, f"(blocks - vLLM's null block) x {size}", is_exact),
    ]
    facts = {
        "model": profile.model,
        "profile": profile.name,
        "num_gpu_blocks": blocks,
        "block_size": size,
        "kv_cache_tokens": blocks * size,
        "max_num_seqs": seqs,
        "max_model_len": length,
    }
    head = [
        headline(cache, kept, rows, None),
        f"{profile.model}: {profile.quantisation} weights, KV {profile.kv_cache_dtype}, on {profile.gpu}",
        f"max_num_seqs {seqs:,}, max_model_len {length:,}",
    ]
    _say_requests(kept, head, facts)
    return MemoryAnswer(head, facts, [*parts, *rows], [*cuts, *notes_of(cache, kept, found, None)])


def _held(cache: Cache, flags: Flags) -> tuple[RequestLengths | None, list[str], list[Row], Fit | None]:
    """The requests that vLLM runs of those asked for, what it cuts, and how many of them the cache holds."""
    lengths = lengths_of_flags(flags)
    kept, cuts = (None, []) if lengths is None else runnable(lengths, cache.max_model_len, lengths.source)
    return kept, cuts, *rows_of(cache, kept)


def _say_requests(lengths: RequestLengths | None, head: list[str], facts: dict[str, Any]) -> None:
    if lengths is not None:
        facts["requests"] = lengths.source
        head.append(f"requests: {lengths.source}")


def plan_of(config: Any, gpu: Gpu, flags: Flags, **more: Any) -> MemoryPlan:
    """A plan under the command's flags."""
    settings = {key: flags[key] for key in SETTINGS} | more
    return plan_memory(
        config,
        gpu,
        quantisation=flags["quantization"],
        tensor_parallel_size=flags["tensor_parallel_size"] or 1,
        expert_parallel=flags["enable_expert_parallel"],
        **({"vllm_version": flags["vllm_version"]} if flags["vllm_version"] else {}),
        **settings,
    )


def gpu_of_flags(flags: Flags) -> Gpu:
    """The GPU by name or datasheet; --memory goes before what it has, and is enough alone."""
    size = flags.get("memory")
    if size is None:
        return gpu_of(flags["gpu"], flags["gpu_spec"])
    total = memory_bytes(size)
    if flags["gpu"] is None and flags["gpu_spec"] is None:
        return Gpu("gpu", f"a GPU of {total / GIB:.2f} GiB", total, 0.0, {"bf16": 0.0}, 0.0)
    return replace(gpu_of(flags["gpu"], flags["gpu_spec"]), total_bytes=total)


def facts_of(name: str, plan: MemoryPlan, gpu: Gpu, num_parameters: int) -> dict[str, Any]:
    """What the figures are of, and the figures that scripts read."""
    version = plan.limits.version
    return {
        "model": name,
        "num_parameters": num_parameters,
        "gpu": gpu.short,
        "quantization": plan.quantisation,
        "kv_cache_dtype": plan.kv_cache_dtype,
        "tensor_parallel_size": plan.limits.tensor_parallel_size,
        "vllm_version": f"{version[0]}.{version[1]}",
        "gpu_memory_utilization": plan.gpu_memory_utilization,
        "max_num_seqs": plan.limits.max_num_seqs,
        "max_num_batched_tokens": plan.limits.max_num_batched_tokens,
        "max_model_len": plan.limits.max_model_len,
        "enforce_eager": plan.limits.enforce_eager,
        "num_gpu_blocks": plan.num_gpu_blocks,
        "block_size": plan.block_size,
        "kv_cache_tokens": plan.kv_cache_tokens,
        "kv_cache_tokens_low": plan.kv_cache_tokens_low,
        "kv_cache_tokens_high": plan.kv_cache_tokens_high,
    }


def headline(cache: Cache, lengths: RequestLengths | None, rows: Sequence[Row], plan: MemoryPlan | None) -> str:
    """The answer in one sentence."""
    by_key, start = {row.key: row for row in rows}, ""
    if cache.usable_blocks < cache.full_blocks:
        start = f"; vLLM starts only with --max-model-len {cache.max_tokens} or less"
    if lengths is not None:
        row = by_key["without_preemption"] if lengths.is_fixed else by_key["at_risk"]
        between = f" ({row.low:,} to {row.high:,})" if row.low is not None else ""
        what = lengths.source.removesuffix(" tokens") if lengths.is_fixed else "these lengths"
        return f"{row.value:,} requests of {what} fit{between}{start}"
    between = ""
    tokens = cache.max_tokens
    if plan is not None:
        tokens = plan.kv_cache_tokens
        between = f" ({plan.kv_cache_tokens_low:,} to {plan.kv_cache_tokens_high:,})"
    return (
        f"{tokens:,} tokens of KV cache{between}: {by_key['at_max_model_len'].value:g} requests of max_model_len{start}"
    )


def _batch_with(config: Any, gpu: Gpu, flags: Flags, lengths: RequestLengths) -> Callable[[int], int]:
    def batch_with(seats: int) -> int:
        try:
            cache = cache_of_plan(plan_of(config, gpu, flags, max_num_seqs=seats))
        except UserError:  # no memory left at all
            return 0
        return cache.fits(lengths)[0].at_risk

    return batch_with


def largest_max_num_seqs(batch_with: Callable[[int], int], start: int) -> int | None:
    """The most seats for which there is memory once they are asked for; `batch_with` falls with the seats.

    None when it is `start` or less.
    """
    low, high = start, start
    while high < MAX_SEQS and batch_with(high * 2) >= high * 2:
        high *= 2
    low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if batch_with(middle) >= middle else (low, middle)
    return low if low > start else None


def _checkpoint_notes(plan: MemoryPlan, own: str | None, flags: Flags) -> Iterator[str]:
    if own is not None and flags["kv_cache_dtype"] == "auto":
        why = "the checkpoint's quantization_config says so, and vLLM follows it where --kv-cache-dtype is auto"
        yield f"KV cache in {own}: {why}."
    if plan.limits.version >= (0, 20) and plan.part("CUDA graphs") == 0 and not plan.limits.enforce_eager:
        yield "No CUDA graphs are captured under these limits."


def _refusals(plan: MemoryPlan, own: int) -> Iterator[str]:
    """Settings that vLLM refuses before it looks at the memory."""
    limits = plan.limits
    if limits.max_num_batched_tokens < limits.max_num_seqs:
        tokens, seqs = limits.max_num_batched_tokens, limits.max_num_seqs
        rule = f"max_num_batched_tokens ({tokens:,}) must be at least max_num_seqs ({seqs:,})"
        yield f"vLLM does not start like this: {rule}. Raise the one or lower the other."
    if limits.max_model_len > own:
        yield f"vLLM takes more than the model's own {own:,} tokens only with VLLM_ALLOW_LONG_MAX_MODEL_LEN=1."


def notes_of(cache: Cache, lengths: RequestLengths | None, found: Fit | None, largest: int | None) -> list[str]:
    """What else one must know: limits that bind before memory does, settings that vLLM does not start with."""
    notes = []
    if cache.usable_blocks < cache.full_blocks:
        notes.append(
            f"vLLM does not start like this: one request of max_model_len ({cache.max_model_len:,} tokens) is above "
            f"the {cache.max_tokens:,} tokens of KV cache. Set --max-model-len {cache.max_tokens} or less."
        )
    if lengths is None or found is None:
        notes.append("Give --prompt-len and --output-len, or --trace, for the batch of your own requests.")
    elif found.at_risk > cache.max_num_seqs:
        more = "" if largest is None else f" The most that can be had is --max-num-seqs {largest}."
        notes.append(
            f"max_num_seqs ({cache.max_num_seqs:,}) binds before memory does. Raising it takes memory for sampling, "
            f"so fewer fit than the table says.{more}"
        )
    elif found.at_risk < 1:
        notes.append("Not even one of these requests is safe from running out of blocks.")
    if found is not None and lengths is not None and not lengths.is_fixed:
        notes.append("Taken: all seats filled at all times, nothing shared between prompts (that would need less).")
    return notes
