"""From measured op tables to a whole profile: design, fit, held-out error, memory, range, provenance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simbatch.profiler.fitting.design import REGIMES, Limits, sample_steps
from simbatch.profiler.fitting.fit import fit_two_regime, judge, judge_bands
from simbatch.profiler.fitting.steps import concatenate
from simbatch.profiler.importers.llmservingsim import OpTables
from simbatch.profiler.model.config import ModelConfig, read_json, read_model_config
from simbatch.sim.cost.error import FitError
from simbatch.sim.cost.gpus import GPU_NAMES, profile_name
from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.cost.step_time import TwoRegimeStepTime
from simbatch.sim.errors import Problem, UserError

TRAIN_SEED, HELD_OUT_SEED = 1, 2
SHARED_CONTEXT = 2  # requests that share a prefix each read it: contexts add up to more than the cache holds
TRAIN_STEPS, HELD_OUT_STEPS = 4000, 2000
KV_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}
SOURCE = "LLMServingSim (github.com/casys-kaist/LLMServingSim): op latencies measured through vLLM, composed to steps"


@dataclass(frozen=True)
class RunFacts:
    """What an engine's start resolved, from a recorded run's `meta.json`."""

    num_gpu_blocks: int
    block_size: int
    gpu_memory_utilization: float
    total_bytes: int
    max_model_len: int
    max_num_batched_tokens: int


def import_llmservingsim(
    folder: Path, model_config: Path, run_meta: Path | None, output_name: str, tensor_parallel_size: int = 1
) -> MeasuredProfile:
    """Fit a profile from LLMServingSim's folder; the run's facts are the engine's at its start, nothing it measured.

    Raises UserError for missing or malformed files and for what cannot be imported.
    """
    if tensor_parallel_size != 1:
        rule = "only 1 can be imported so far: the all-reduce between GPUs is not in the op tables"
        raise UserError(Problem("--tensor-parallel-size", rule, tensor_parallel_size))
    if run_meta is None:
        rule = "the number of KV blocks is not in the op tables"
        raise UserError(Problem("--run-meta", rule, mend="give the meta.json of a run on this GPU"))
    config = read_model_config(model_config)
    facts = read_run_facts(run_meta)
    tables = OpTables(folder, config.num_hidden_layers, qk_norm=config.qk_norm)
    gpus = {full: short for short, full in GPU_NAMES.items()}
    gpu, variant, model = (tables.meta[key] for key in ("gpu", "variant", "model"))
    if gpu not in gpus or variant not in KV_DTYPES:
        rule = f"gpu must be one of {', '.join(gpus)}, and variant one of {', '.join(KV_DTYPES)}"
        raise UserError(Problem(str(folder / "meta.yaml"), rule, (gpu, variant)))
    kv_tokens = (facts.num_gpu_blocks - 1) * facts.block_size * SHARED_CONTEXT
    limits = tables.attention.limits(facts.max_num_batched_tokens, kv_tokens)
    step_time, error = _fit(tables, limits)
    paths = {"--model-config": model_config, "--run-meta": run_meta}
    return MeasuredProfile.model_validate(
        {
            "name": profile_name(gpus[gpu], model, variant, KV_DTYPES[variant], 1),
            "model": model,
            "gpu": gpus[gpu],
            "quantisation": variant,
            "kv_cache_dtype": KV_DTYPES[variant],
            "tensor_parallel_size": 1,
            "vllm_version": str(tables.meta["vllm_version"]),
            "source": SOURCE,
            "licence": "MIT",
            "command": _command(folder, paths, output_name),
            "max_model_len": facts.max_model_len,
            "notes": _notes(tables, config, facts),
            "memory": _memory(config, facts),
            "step_time": step_time,
            "error": error,
            "range": _range(limits),
        }
    )


def read_run_facts(path: Path) -> RunFacts:
    """Read a run's `meta.json`; raises UserError for keys that are missing or of the wrong kind."""
    content = read_json(path)
    engine, cache = _part(path, content, "engine_kwargs"), _part(path, content, "kv_cache")
    hardware = _part(path, content, "hardware")
    utilization = cache.get("gpu_memory_utilization")
    if isinstance(utilization, bool) or not isinstance(utilization, int | float) or not 0 < utilization <= 1:
        rule = "must be a number above 0, at most 1"
        raise UserError(Problem(f"{path} kv_cache.gpu_memory_utilization", rule, utilization))
    return RunFacts(
        num_gpu_blocks=_whole(path, cache, "kv_cache", "num_gpu_blocks"),
        block_size=_whole(path, cache, "kv_cache", "block_size"),
        gpu_memory_utilization=float(utilization),
        total_bytes=_whole(path, hardware, "hardware", "device_total_memory_bytes"),
        max_model_len=_whole(path, engine, "engine_kwargs", "max_model_len"),
        max_num_batched_tokens=_whole(path, engine, "engine_kwargs", "max_num_batched_tokens"),
    )


def _fit(tables: OpTables, limits: Limits) -> tuple[TwoRegimeStepTime, FitError]:
    train = {regime: sample_steps(regime, TRAIN_STEPS, limits, TRAIN_SEED) for regime in REGIMES}
    held_out = {regime: sample_steps(regime, HELD_OUT_STEPS, limits, HELD_OUT_SEED) for regime in REGIMES}
    decode, mixed = train["decode"], concatenate([train["prefill"], train["mixed"]])
    counts = tables.token_counts
    step_time = fit_two_regime((decode, tables.step_time_s(decode)), (mixed, tables.step_time_s(mixed)), counts, counts)
    cost = step_time.cost_model()
    measured_s = {regime: tables.step_time_s(steps) for regime, steps in held_out.items()}
    design = (
        f"{TRAIN_STEPS} random steps per regime fitted, {HELD_OUT_STEPS} others held out, over the measured grid and "
        f"contexts of {limits.kv_tokens} tokens in all; against the composed tables, not against a real run"
    )
    return step_time, FitError(
        design=design,
        decode_bands=judge_bands(cost, held_out["decode"], measured_s["decode"]),
        **{regime: judge(cost, held_out[regime], measured_s[regime]) for regime in REGIMES},
    )


def _memory(config: ModelConfig, facts: RunFacts) -> dict[str, Any]:
    kv_bytes = facts.num_gpu_blocks * facts.block_size * config.kv_bytes_per_token
    return {
        "total_bytes": facts.total_bytes,
        "gpu_memory_utilization": facts.gpu_memory_utilization,
        "weights_bytes": config.weights_bytes,
        "reserve_bytes": int(facts.total_bytes * facts.gpu_memory_utilization) - config.weights_bytes - kv_bytes,
        "kv_bytes_per_token": config.kv_bytes_per_token,
        "block_size": facts.block_size,
        "num_gpu_blocks": facts.num_gpu_blocks,
        "num_gpu_blocks_from": "vllm",
    }


def _range(limits: Limits) -> dict[str, Any]:
    longest = limits.max_num_batched_tokens
    contexts = {"mean_context": limits.context, "decode_context": (limits.context[0], limits.kv_tokens)}
    return {
        "decode": {"num_decodes": limits.decode_only_seqs, **contexts},
        "mixed": {
            "num_tokens": (limits.chunk[0], longest),
            "prefill_tokens": limits.chunk,
            "mean_history": limits.history,
            "num_decodes": (0, limits.mixed_seqs[1]),
            **contexts,
        },
    }


def _notes(tables: OpTables, config: ModelConfig, facts: RunFacts) -> list[str]:
    kv_tokens = (facts.num_gpu_blocks - 1) * facts.block_size
    notes = [
        "memory: num_gpu_blocks, block_size, gpu_memory_utilization and total_bytes are what vLLM resolved when a "
        "recorded run started; weights_bytes follow from the model's published shapes; reserve_bytes is what these "
        "imply (activations, CUDA graphs, other libraries), not a measurement",
        f"max_model_len is that run's {facts.max_model_len}: {kv_tokens} tokens of KV cache cannot hold one request of "
        f"the model's own {config.max_position_embeddings}"
        if config.max_position_embeddings > kv_tokens
        else f"max_model_len is that run's {facts.max_model_len}; the model's own is {config.max_position_embeddings}",
    ]
    if not tables.attention.alpha_default_is_stated:
        notes.append(
            f"uneven decode contexts: buckets that skew_fit.csv lacks take {tables.attention.alpha_default:g}, its "
            "median weighted by samples, since meta.yaml states no default"
        )
    return notes


def _command(folder: Path, options: Mapping[str, Path], output_name: str) -> str:
    """Return the command; of absolute paths only the last two parts: a machine's folders mean nothing elsewhere."""
    words = ["simbatch profiles import --from llmservingsim", _portable(folder)]
    words += [f"{option} {_portable(path)}" for option, path in options.items()]
    return " ".join([*words, f"-o {output_name}"])


def _portable(path: Path) -> str:
    return "/".join(path.parts[-2:]) if path.is_absolute() else path.as_posix()


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
