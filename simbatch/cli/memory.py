"""`simbatch memory`: how large a batch fits into a GPU's memory, every figure with its formula."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simbatch.cli._options import gpu_options
from simbatch.cli._trace_options import columns_of
from simbatch.sim.errors import Problem, UserError

if TYPE_CHECKING:
    from simbatch.profiler.model.config import ModelConfig
    from simbatch.profiler.model.memory_answer import Cache, Row
    from simbatch.profiler.model.memory_batch import Lengths
    from simbatch.profiler.model.memory_plan import MemoryPlan
    from simbatch.sim.cost.gpus import Gpu

Count = click.IntRange(min=1)
_OF_CONFIGS = ("gpu", "gpu_spec", "quantization", "tensor_parallel_size", "max_num_batched_tokens")


@click.command()
@click.argument("model_config", required=False, type=click.Path(path_type=Path))
@gpu_options
@click.option("--profile", metavar="NAME", help="Take the memory of this profile instead of MODEL_CONFIG and --gpu.")
@click.option("--quantization", metavar="NAME", help="awq, gptq, int4, int8, fp8 ...; default: the config's own.")
@click.option("--kv-cache-dtype", default="auto", show_default=True, metavar="NAME", help="auto, fp8 ...")
@click.option("--tensor-parallel-size", type=Count, metavar="N", help="GPUs that share the model (1).")
@click.option(
    "--gpu-memory-utilization",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="F",
    help="Share of the memory that vLLM takes (0.9).",
)
@click.option("--block-size", type=Count, metavar="N", help="Tokens of a KV block (16).")
@click.option("--max-num-seqs", type=Count, metavar="N", help="vLLM's limit; default: vLLM's on this GPU.")
@click.option("--max-num-batched-tokens", type=Count, metavar="N", help="vLLM's limit; default: vLLM's on this GPU.")
@click.option("--max-model-len", type=Count, metavar="N", help="Longest prompt and output together (the model's).")
@click.option("--prompt-len", type=Count, metavar="N", help="Prompt tokens of a request (mean).")
@click.option("--output-len", type=Count, metavar="M", help="Output tokens of a request (mean).")
@click.option("--prompt-len-cv", type=click.FloatRange(0, 10), default=0.0, metavar="C", help="0: all alike.")
@click.option("--output-len-cv", type=click.FloatRange(0, 10), default=0.0, metavar="C", help="Else lognormal.")
@click.option("--trace", type=click.Path(path_type=Path), metavar="FILE", help="Take the lengths of this trace.")
@click.option("--trace-format", metavar="F", help="Its format, if it is not detected.")
@click.option("--columns", metavar="KIND=NAME,...", help="Names of its columns: prompt=NAME,output=NAME.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def memory(model_config: Path | None, profile: str | None, as_json: bool, **flags: Any) -> None:
    """Say how large a batch fits, with the formula of every figure.

    MODEL_CONFIG is a model's config.json or its folder. No GPU is needed and nothing is downloaded.
    """
    from simbatch.profiler.model.memory_answer import content, text

    if (model_config is None) == (profile is None):
        raise click.UsageError("name either a MODEL_CONFIG with --gpu, or --profile NAME")
    lengths = _lengths(flags)
    if profile is not None:
        head, facts, rows, notes = _of_profile(profile, lengths, flags)
    else:
        head, facts, rows, notes = _of_config(Path(str(model_config)), lengths, flags)
    if lengths is not None:
        head.append(f"requests: {lengths.source}")
        facts["requests"] = lengths.source
    click.echo(json.dumps(content(rows, notes, facts), indent=2) if as_json else text(rows, notes, head))


Answer = tuple[list[str], dict[str, Any], "list[Row]", list[str]]


def _of_config(path: Path, lengths: Lengths | None, flags: dict[str, Any]) -> Answer:
    from simbatch.profiler.model.config import read_model_config
    from simbatch.profiler.model.memory_answer import Cache, Row, largest_max_num_seqs, rows_of
    from simbatch.profiler.model.memory_batch import fit
    from simbatch.sim.cost.gpus import gpu_of

    gpu = gpu_of(flags["gpu"], flags["gpu_spec"])
    _check_config(path)
    config = read_model_config(path)
    plan, block_size = _plan(config, gpu, flags, flags["max_num_seqs"]), flags["block_size"] or 16
    seqs = flags["max_num_seqs"] or gpu.default_max_num_seqs
    max_model_len = flags["max_model_len"] or config.max_position_embeddings
    cache = Cache(plan.num_gpu_blocks, block_size, max_model_len, seqs, False)
    kept, cuts = _runnable(lengths, cache)
    rows, found = rows_of(cache, kept)

    def batch_with(more: int) -> int:
        try:
            blocks = _plan(config, gpu, flags, more).num_gpu_blocks
        except UserError:  # no memory left at all
            return 0
        return 0 if kept is None else fit(kept, blocks - 1, block_size).at_risk

    largest = None
    if found is not None and found.at_risk > seqs and flags["max_num_seqs"] is None:
        largest = largest_max_num_seqs(batch_with, seqs)
    parts = [Row(_key(one.label), one.label, one.value, one.formula, one.is_exact) for one in plan.all_figures]
    facts = _facts(path, config, gpu, flags, cache)
    size = facts["tensor_parallel_size"]
    gpus = f"{size} x {gpu.name}, figures of one" if size > 1 else gpu.name
    head = [
        f"{facts['model']}: {config.num_parameters:,} parameters, {facts['quantization']} weights, on {gpus}",
        f"max_num_seqs {seqs:,}, max_num_batched_tokens {facts['max_num_batched_tokens']:,}, "
        f"max_model_len {max_model_len:,}",
    ]
    notes = [*_refusals(facts, config), *cuts, *_notes(cache, kept, found, largest)]
    return head, facts, [*parts, *rows], notes


def _refusals(facts: dict[str, Any], config: ModelConfig) -> Iterator[str]:
    """Settings that vLLM refuses before it looks at the memory."""
    seqs, tokens = facts["max_num_seqs"], facts["max_num_batched_tokens"]
    longest, own = facts["max_model_len"], config.max_position_embeddings
    if tokens < seqs:
        rule = f"max_num_batched_tokens ({tokens:,}) must be at least max_num_seqs ({seqs:,})"
        yield f"vLLM does not start like this: {rule}. Raise the one or lower the other."
    if longest > own:
        yield f"vLLM takes more than the model's own {own:,} tokens only with VLLM_ALLOW_LONG_MAX_MODEL_LEN=1."


def _plan(config: ModelConfig, gpu: Gpu, flags: dict[str, Any], max_num_seqs: int | None) -> MemoryPlan:
    from simbatch.profiler.model.memory_plan import DEFAULT_UTILIZATION, plan_memory

    return plan_memory(
        config,
        gpu,
        quantisation=flags["quantization"],
        kv_cache_dtype=flags["kv_cache_dtype"],
        tensor_parallel_size=flags["tensor_parallel_size"] or 1,
        gpu_memory_utilization=flags["gpu_memory_utilization"] or DEFAULT_UTILIZATION,
        block_size=flags["block_size"] or 16,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=flags["max_num_batched_tokens"],
    )


def _facts(path: Path, config: ModelConfig, gpu: Gpu, flags: dict[str, Any], cache: Cache) -> dict[str, Any]:
    """What the figures are of."""
    from simbatch.profiler.model.config import SHORT_DTYPES
    from simbatch.profiler.model.memory_plan import DEFAULT_UTILIZATION

    return {
        "model": (path if path.is_dir() else path.parent).resolve().name,
        "num_parameters": config.num_parameters,
        "gpu": gpu.short,
        "quantization": flags["quantization"] or config.quantisation or SHORT_DTYPES[config.dtype],
        "kv_cache_dtype": flags["kv_cache_dtype"],
        "tensor_parallel_size": flags["tensor_parallel_size"] or 1,
        "gpu_memory_utilization": flags["gpu_memory_utilization"] or DEFAULT_UTILIZATION,
        "max_num_seqs": cache.max_num_seqs,
        "max_num_batched_tokens": flags["max_num_batched_tokens"] or gpu.default_max_num_batched_tokens,
        "max_model_len": cache.max_model_len,
        "block_size": cache.block_size,
    }


def _of_profile(name: str, lengths: Lengths | None, flags: dict[str, Any]) -> Answer:
    from simbatch.profiler.model.memory_answer import Cache, Row, rows_of
    from simbatch.sim.cost.by_name import load_profile
    from simbatch.sim.cost.profile import MeasuredProfile

    given = [f"--{key.replace('_', '-')}" for key in _OF_CONFIGS if flags[key] is not None]
    if given:
        raise click.UsageError(f"{', '.join(given)}: a profile has its own; give MODEL_CONFIG and --gpu to plan")
    profile = load_profile(name, folder=Path())
    if not isinstance(profile, MeasuredProfile):
        rule = "has no memory figures: its blocks are written inline"
        raise UserError(Problem("--profile", rule, name, "take one that ships: `simbatch profiles list`"))
    kv, utilization = flags["kv_cache_dtype"], flags["gpu_memory_utilization"]
    block_size = flags["block_size"] or profile.default_block_size
    blocks = profile.num_gpu_blocks_for(utilization, kv, block_size)
    same = kv == "auto" and utilization is None
    how = f"as {profile.name} says ({profile.memory.num_gpu_blocks_from})" if same else "from the profile's memory"
    is_exact = same and profile.memory.num_gpu_blocks_from == "vllm"
    seqs = flags["max_num_seqs"] or profile.default_max_num_seqs
    cache = Cache(blocks, block_size, flags["max_model_len"] or profile.max_model_len, seqs, is_exact)
    kept, cuts = _runnable(lengths, cache)
    rows, found = rows_of(cache, kept)
    tokens = f"(blocks - vLLM's null block) x {block_size}"
    parts = [
        Row("blocks", "blocks", blocks, how, is_exact),
        Row("kv_tokens", "KV tokens", cache.max_tokens, tokens, is_exact),
    ]
    head = [
        f"{profile.model}: {profile.quantisation} weights, KV {profile.kv_cache_dtype}, on {profile.gpu}",
        f"max_num_seqs {seqs:,}, max_model_len {cache.max_model_len:,}",
    ]
    facts = {
        "model": profile.model,
        "profile": profile.name,
        "max_num_seqs": seqs,
        "max_model_len": cache.max_model_len,
        "block_size": block_size,
    }
    return head, facts, [*parts, *rows], [*cuts, *_notes(cache, kept, found, None)]


def _lengths(flags: dict[str, Any]) -> Lengths | None:
    from simbatch.profiler.model.memory_lengths import lengths_of, lengths_of_trace

    trace, trace_format = flags["trace"], flags["trace_format"]
    given = lengths_of(flags["prompt_len"], flags["prompt_len_cv"], flags["output_len"], flags["output_len_cv"])
    if trace is None:
        if trace_format is not None:
            raise UserError(Problem("--trace-format", "there is no trace", trace_format, "add --trace FILE"))
        return given
    if given is not None:
        raise UserError(
            Problem("--trace", "a trace brings its own lengths", mend="leave out --prompt-len and --output-len")
        )
    columns = flags["columns"]
    return lengths_of_trace(trace, trace_format, None if columns is None else columns_of(columns))


def _runnable(lengths: Lengths | None, cache: Cache) -> tuple[Lengths | None, list[str]]:
    from simbatch.profiler.model.memory_lengths import runnable

    return (None, []) if lengths is None else runnable(lengths, cache.max_model_len, lengths.source)


def _notes(cache: Cache, lengths: Lengths | None, found: Any, largest: int | None) -> list[str]:
    from simbatch.profiler.model.memory_answer import notes_of

    return notes_of(cache, lengths, found, largest)


def _check_config(path: Path) -> None:
    from simbatch.sim.paths import stat_of

    file = path / "config.json" if path.is_dir() else path
    if stat_of(file) is None:
        rule = "there is no such file" if file is path else "there is no config.json in this folder"
        mend = "name a model's config.json, or the folder that holds it; nothing is downloaded"
        raise UserError(Problem(str(path), rule, mend=mend))


def _key(label: str) -> str:
    return label.lower().replace(" ", "_")
